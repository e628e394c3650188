"""Checks of a site's images after each has been read."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pt_peft.data.items import SPLITS, Item, SplitCounts, SplitName, split_counts
from pt_peft.data.label_values import class_of_value
from pt_peft.data.names import says_unknown
from pt_peft.data.probe import Probe
from pt_peft.data.problems import some_of
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data, Fit, Intensity
from pt_peft.site_check.findings import Findings
from pt_peft.site_check.report import FITTED, Fitted, Looks, Spread

Values = npt.NDArray[np.float64]

IMBALANCED = 10
"""Ratio of the training images of the most frequent class and the rarest from which classes are said to be rare."""
SMALLEST_SIDE = 16
"""Pixels; smaller images are reported."""
LONGEST_RATIO = 2.0
"""Ratio of the sides; of the model's input a longer image fills less than half."""
FAR_MEAN, LOW_STD = 2.0, 0.2
"""Limits of the pixels that the backbone receives; it was trained on a mean near 0 and a standard deviation near 1."""

Probed = list[tuple[Item, Probe]]
"""The images that can be read."""


def check_classes(experiment: Experiment, items: Sequence[Item], findings: Findings) -> dict[SplitName, SplitCounts]:
    """Counts the images of each split; warns of empty splits, and of rare and missing classes."""
    counts: dict[SplitName, SplitCounts] = {}
    for split in SPLITS:
        counts[split] = split_counts([item for item in items if item.split == split], experiment.data.classes)
        if split != "train" and not counts[split]["images"]:
            findings.warning(
                "empty split", f"there are no '{split}' images: this site will report no '{split}' metrics."
            )
    of_class = counts["train"]["classes"]
    for name, count in of_class.items():
        if not count:
            findings.warning("class without images", f"class {name!r} has no training images at this site.")
    _check_imbalance(experiment, of_class, findings)
    return counts


def _check_imbalance(experiment: Experiment, of_class: Mapping[str, int], findings: Findings) -> None:
    """Warns of an objective by which the site would not learn rare classes, or unlearn those that it lacks."""
    imbalance, present = experiment.training.imbalance, {name: count for name, count in of_class.items() if count}
    if not present or experiment.privacy.sample:  # which leaves no choice
        return
    most, rarest = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
    if imbalance == "none" and present[most] >= IMBALANCED * present[rarest]:
        times = present[most] / present[rarest]
        findings.warning(
            "rare classes",
            f"class {most!r} has {times:.0f} times the training images of {rarest!r}, and the job's training.imbalance "
            "is 'none'; 'balanced_softmax' would let all classes count alike.",
        )
    if imbalance == "weighted_loss" and len(present) < len(of_class):
        findings.warning(
            "rare classes",
            "by the job's training.imbalance 'weighted_loss' the site unlearns classes of which it has no images; "
            "'balanced_softmax' would leave them as other sites teach them.",
        )


def values_by_class(data: Data, own: SiteData, items: Sequence[Item]) -> dict[str, dict[str, int]]:
    """By class, the site's values that mean it, each with the number of its images; the most frequent first."""
    class_of = class_of_value(data, own)
    found = Counter(value for item in items for value in set(item.values))
    by_class: dict[str, dict[str, int]] = {name: {} for name in data.classes}
    for value, count in sorted(found.items(), key=lambda one: (-one[1], one[0])):
        by_class[data.classes[class_of[value]]][value] = count
    return by_class


def check_copies(probed: Probed, published_split: bool, findings: Findings) -> None:
    """Reports images with the same content: in two splits as an error, in one split as a warning.

    Args:
        probed: the images that can be read.
        published_split: whether the publisher has drawn the splits, so that the site cannot change them; an error is a
            warning then.
        findings: takes the problems.
    """
    across = findings.warning if published_split else findings.error
    same: dict[str, list[Item]] = defaultdict(list)
    for item, one in probed:
        same[one.sha256].append(item)
    for items in same.values():
        first = items[0]
        for other in items[1:]:
            if other.split != first.split:
                across(
                    "same image in two splits",
                    f"'{first.file}' ({first.split}) and '{other.file}' ({other.split}) have the same content"
                    f"{', as published' if published_split else '; leave one out, or put both in one split'}.",
                )
            else:
                findings.warning("same image twice", f"'{first.file}' and '{other.file}' have the same content.")
            if other.labels != first.labels:
                findings.warning(
                    "same image, other label",
                    f"'{first.file}' and '{other.file}' have the same content but not the same label.",
                )


def check_patients(probed: Probed, findings: Findings) -> None:
    """Warns of patients, by DICOM's patient ID, who have images in several splits.

    A single ID is what some programs write for everybody when they make images anonymous.
    """
    of_patient: dict[str, list[Item]] = defaultdict(list)
    for item, one in probed:
        if one.patient and not says_unknown(one.patient):
            of_patient[one.patient].append(item)
    divided = [items for items in of_patient.values() if len({item.split for item in items}) > 1]
    if divided and len(of_patient) > 1:
        first = divided[0][0]
        other = next(item for item in divided[0] if item.split != first.split)
        findings.warning(
            "patient in several splits",
            f"{len(divided)} of {len(of_patient)} patients, by DICOM's patient ID, have images in several splits, such "
            f"as '{first.file}' ({first.split}) and '{other.file}' ({other.split}): a table with data.columns.group, "
            "or data.group_pattern where paths name the patient, would keep them together.",
        )


def check_looks(experiment: Experiment, probed: Probed, findings: Findings) -> Looks:
    """Sizes and intensities of the images; warns where they do not suit the experiment's backbone."""
    backbone = experiment.backbone
    for item, one in probed:
        if min(one.width, one.height) < SMALLEST_SIDE:
            findings.warning("tiny image", f"'{item.file}' is {one.width} x {one.height} pixels.")
        if one.low == one.high:
            findings.warning("blank image", f"every pixel of '{item.file}' is {one.low:g}.")
        elif unused := _unused_bits(one, experiment.data.intensity):
            advice = (
                "data.intensity 'image' would take its own range"
                if one.mode.startswith("I;16")
                else "save it with 8 bits a channel, scaled"
            )
            findings.warning(
                "dark 16-bit image",
                f"'{item.file}' uses {16 - unused} of its 16 bits, so that it is at most {255 >> unused} of 255 "
                f"bright; {advice}.",
            )
        for kind, what in one.remarks:
            findings.warning(kind, f"'{item.file}' {what}.")
    if masks := [f"'{item.file}'" for item, one in probed if one.two_values]:
        findings.warning(
            "images of two values",
            f"{some_of(masks, len(probed), 'images')} have two values alone, as the masks of a segmentation have; "
            "data.leave_out would leave them out by their folder's name, or a table that lists the images alone.",
        )
    sides = np.array([[one.width, one.height] for _, one in probed])
    resized = sides.max(axis=1) if experiment.data.fit == "pad" else sides.min(axis=1)
    small = int((resized < backbone.image_size).sum())
    if small:
        findings.warning(
            "enlarged images",
            f"{small} of {len(probed)} images are smaller than the backbone's image_size {backbone.image_size} and "
            "will be enlarged.",
        )
    mean, std = _pixels(probed)
    seen_mean, seen_std = (mean - backbone.mean) / backbone.std, std / backbone.std
    if np.abs(seen_mean).max() > FAR_MEAN or seen_std.max() < LOW_STD:
        findings.warning(
            "unusual intensities",
            f"normalised as the backbone asks for (mean {backbone.mean}, std {backbone.std}) the images have mean "
            f"{_shown(seen_mean)} and standard deviation {_shown(seen_std)}; near 0 and 1 would be usual.",
        )
    return {
        "width": _spread(sides[:, 0]),
        "height": _spread(sides[:, 1]),
        "fit": _check_fit(experiment.data.fit, probed, findings),
        "modes": dict(Counter(one.mode for _, one in probed).most_common()),
        "stored_range": [min(one.low for _, one in probed), max(one.high for _, one in probed)],
        "mean": [round(float(value), 4) for value in mean],
        "std": [round(float(value), 4) for value in std],
        "normalised_mean": [round(float(value), 4) for value in seen_mean],
        "normalised_std": [round(float(value), 4) for value in seen_std],
    }


def _check_fit(fit: Fit, probed: Probed, findings: Findings) -> Fitted:
    """What ``data.fit`` makes of the images' area; warns of what is lost, and of images that fill too little."""
    shares = [1 - min(one.width, one.height) / max(one.width, one.height) for _, one in probed]
    largest = max(shares)
    file = probed[shares.index(largest)][0].file
    found: Fitted = {
        "fit": fit,
        "not_square": sum(share > 0 for share in shares),
        "mean": round(sum(shares) / len(shares), 4),
        "largest": round(largest, 4),
        "file": file,
    }
    long = sum(share > 1 - 1 / LONGEST_RATIO for share in shares)
    if fit == "crop" and largest:
        findings.warning(
            "cut images",
            f"data.fit 'crop' cuts away {found['mean']:.1%} of an image's area on average, and {largest:.1%} of "
            f"'{file}'; 'pad' would keep all of it.",
        )
    elif long:
        findings.warning(
            "long images",
            f"{long} of {len(probed)} images are more than {LONGEST_RATIO:g} times as long as wide: with data.fit "
            f"'{fit}' {largest:.1%} {FITTED[fit]} ('{file}').",
        )
    return found


def _pixels(probed: Probed) -> tuple[Values, Values]:
    """Mean and standard deviation of each channel over all pixels, each image weighing the same, (3,), in [0,1]."""
    means, stds = np.array([one.mean for _, one in probed]), np.array([one.std for _, one in probed])
    mean = means.mean(axis=0)
    return mean, np.sqrt((stds**2 + (means - mean) ** 2).mean(axis=0))


def _unused_bits(one: Probe, intensity: Intensity) -> int:
    """How many of the upper bits of 16 no value of the image uses, where they make it darker; else 0."""
    grey = one.mode.startswith("I;16")
    if not one.deep or (grey and intensity == "image"):
        return 0
    # Of colours, Pillow reads the upper 8 bits alone.
    return (16 if grey else 8) - int(one.high).bit_length()


def _spread(values: npt.NDArray[np.int64]) -> Spread:
    return {"smallest": int(values.min()), "median": int(np.median(values)), "largest": int(values.max())}


def _shown(values: Values) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"
