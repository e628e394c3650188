"""Counts of a site's images before any training: by split, class, size, brightness and contrast.

No count is of fewer images than the site's ``limits.min_images_per_class``, and none can be told from the others:
`carried` says how. Imports no torch until images are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import numpy as np
from pydantic import Field

from pt_peft.data.items import SPLITS, SplitName
from pt_peft.data.names import clean, name_order
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.schema import Strict

if TYPE_CHECKING:
    from pt_peft.data.pixels import SiteImages

SIDES = (0, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 65536)
"""Pixels."""
EDGES: Mapping[str, tuple[float, ...]] = {
    "width": SIDES,
    "height": SIDES,
    "brightness": tuple(number / 20 for number in range(21)),
    "contrast": tuple(number / 20 for number in range(11)),
}
"""Of each histogram the edges of its bins: the lower one belongs to a bin, the upper one does not. No job chooses them:
counts in other bins would tell of single images. Brightness and contrast are the mean and the standard deviation of an
image's pixels in [0, 1], as training decodes it, the mean of its three channels."""
FEATURES = ("classes", *EDGES)
"""What images are counted by."""

Count = Annotated[int, Field(ge=0, le=10**7)]
Counts = Annotated[list[Count], Field(max_length=1000)]


def carried(counts: Sequence[int], least: int) -> list[int]:
    """The counts of a table's cells as they may leave: those that are too small are counted in another cell.

    From the first cell on, images are carried to the next until there are `least` of them. What is left at the end goes
    back to the last cell that has some, and on to the one before it unless that makes 2 `least` - 1 of them. So each
    count is 0 or of `least` images or more, their sum is that of all images, and a cell that may have fewer than that
    may have any of `least` different numbers, also for who knows this rule: a rule that hides small cells, and one more
    where those are too few, lets them be computed (minimality attack, Wong et al. 2007).

    Args:
        counts: images in each cell, `least` or more in all.
        least: fewest images of a count; with 1 nothing is carried.
    """
    left, closed, waiting = [0] * len(counts), list[int](), 0
    for place, count in enumerate(counts):
        waiting += count
        if waiting >= least:
            left[place], waiting = waiting, 0
            closed.append(place)
    end = len(counts) - 1
    if left[end]:
        return left
    place = end
    while closed and waiting < _several(least):
        place = closed.pop()
        waiting, left[place] = waiting + left[place], 0
    left[place if waiting >= _several(least) else end] = waiting
    return left


def bounds(counts: Sequence[int], least: int) -> list[tuple[int, int]]:
    """The fewest and the most images that each cell may have, by `counts` as `carried` returns them."""
    if (images := sum(counts)) < _several(least):
        return [(0, images)] * len(counts)
    last = max(place for place, count in enumerate(counts) if count)
    found: list[tuple[int, int]] = []
    for place, count in enumerate(counts):
        before = least - 1 if place and not counts[place - 1] else 0
        after = _several(least) - 1 if place == last < len(counts) - 1 else 0
        if count:
            found.append((count - before - after, count))
        else:
            found.append((0, least - 1 if place < last else _several(least) - 1))
    return found


def _several(least: int) -> int:
    return 2 * least - 1


class SplitStatistics(Strict):
    """The images of one split."""

    images: Annotated[int, Field(ge=1, le=10**7)]
    """All that can be read."""
    classes: Counts
    """Images of each of ``data.classes``, carried in the order of the classes' names. For ``multilabel`` each class is
    a table of its own: the images that have it, and the others."""
    width: Counts
    height: Counts
    brightness: Counts
    contrast: Counts

    def check(self, experiment: Experiment, least: int) -> None:
        """Raises UserError unless the counts are of all images, and each is one that may leave."""
        if self.images < least:
            raise UserError(f"report: images is {self.images}; {least} at least would be right.", "images")
        multilabel = experiment.data.task == "multilabel"
        lengths = {"classes": len(experiment.data.classes)} | {name: len(edges) - 1 for name, edges in EDGES.items()}
        for name, length in lengths.items():
            counts: list[int] = getattr(self, name)
            if len(counts) != length:
                raise UserError(f"report: {name} has {len(counts)} counts; {length} would be right.", name)
            if name != "classes":
                tables = [counts]
            elif multilabel:
                tables = [[count, self.images - count] for count in counts]
            else:
                tables = [[counts[place] for place in class_order(experiment)]]
            for table in tables:
                if sum(table) != self.images or min(table) < 0:
                    raise UserError(f"report: {name} counts {sum(table)} images; {self.images} would be right.", name)
                if carried(table, least) != table:
                    raise UserError(f"report: {name} has counts of fewer than {least} images.", name)


class ImageReport(Strict):
    """A site's report of its images."""

    least: Annotated[int, Field(ge=1, le=10**7)]
    """Fewest images of a count: the site's ``limits.min_images_per_class``."""
    train: SplitStatistics | None
    """Null for a split of fewer images than the site's limits ask for, see `Limits.least_in_split`."""
    val: SplitStatistics | None
    test: SplitStatistics | None

    def splits(self) -> dict[str, SplitStatistics]:
        """The splits that are there, by name."""
        found = {split: getattr(self, split) for split in SPLITS}
        return {split: one for split, one in found.items() if one}

    def checked(self, experiment: Experiment) -> Self:
        """The report as it may leave. Raises UserError as `SplitStatistics.check` does."""
        for one in self.splits().values():
            one.check(experiment, self.least)
        return self

    def check_limits(self, limits: Limits) -> None:
        """Raises UserError if a count is of fewer images than a site's limits ask for."""
        if self.least != (least := limits.least_counted):
            raise UserError(f"report: least is {self.least}; {least} would be right.", "least")
        for split, one in self.splits().items():
            if one.images < (fewest := limits.least_in_split(split)):
                raise UserError(f"report: {split} has {one.images} images; {fewest} at least would be right.", split)


def class_order(experiment: Experiment) -> list[int]:
    """Places of ``data.classes`` in the order of their names, which no job chooses (see `image_report`)."""
    return name_order(experiment.data.classes)


def image_report(experiment: Experiment, site: Site, images: "SiteImages") -> dict[str, object]:
    """Reads every image of a site and counts them.

    Args:
        experiment: the classes, and how images are decoded.
        site: its settings.
        images: its images.

    Returns:
        The fields of an `ImageReport`.

    Raises:
        UserError: if more images cannot be read than ``max_unreadable`` allows, or a small count could be told from the
            others or from those of another job.
    """
    least = site.limits.least_counted
    if least > 1 and not site.data.pooled:
        _check_that_small_counts_stay(experiment, site, images)
    report: dict[str, object] = {"least": least}
    listed = read = 0
    for split in SPLITS:
        found = [*_read(experiment, site, images, split)]
        listed, read = listed + len(images.items(split)), read + len(found)
        shown = len(found) >= site.limits.least_in_split(split)
        report[split] = _statistics(experiment, found, least) if shown else None
    if listed - read > site.allowed_unreadable(listed):
        raise UserError(
            f"{listed - read} of {listed} images cannot be read; field 'max_unreadable' of site.json allows "
            f"{site.allowed_unreadable(listed)}, and check-site names them."
        )
    return report


def _check_that_small_counts_stay(experiment: Experiment, site: Site, images: "SiteImages") -> None:
    """Raises UserError where a small count would follow although no table tells it by itself."""
    data, meant = experiment.data, {*map(clean, site.data.classes)}
    if data.task == "multilabel":
        if all(len(item.labels) < 2 for split in SPLITS for item in images.items(split)):
            raise UserError(
                "experiment.json: field 'data.task' is 'multilabel', but no image of the site has two of the classes: "
                "what the others leave over of the images would tell of a small one; 'multiclass' would be right.",
                "data.task",
            )
    elif site.data.source == "npz" and (free := [name for name in data.classes if clean(name) not in meant]):
        raise UserError(
            f"site.json: field 'data.classes' has no values of class '{free[0]}', which in an npz then follow from its "
            "place in the job: counts in two orders would tell small ones; values for each class would be right.",
            "data.classes",
        )


class _Look(NamedTuple):
    """One image that can be read."""

    labels: tuple[int, ...]
    width: int
    height: int
    brightness: float
    contrast: float


def _read(experiment: Experiment, site: Site, images: "SiteImages", split: SplitName) -> Iterator[_Look]:
    """Yields the images of a split that can be read."""
    from pt_peft.data.probe import Probe, probe_all  # imports MONAI

    if experiment.data.source == "lesions":  # which have no files
        decoded = images.decoded(split, experiment.preprocessing.decoding)
        for item, pixels in zip(images.items(split), decoded, strict=True):
            if isinstance(pixels, np.ndarray):
                shown = pixels.astype(np.float32) / 255
                _, height, width = pixels.shape
                std = shown.std(axis=(1, 2)).tolist()
                yield _Look(item.labels, width, height, float(shown.mean()), math.fsum(std) / len(std))
        return
    for item, one in probe_all(experiment, site, images.items(split)):
        if isinstance(one, Probe):
            brightness, contrast = (math.fsum(channels) / len(channels) for channels in (one.mean, one.std))
            yield _Look(item.labels, one.width, one.height, brightness, contrast)


def _statistics(experiment: Experiment, found: Sequence[_Look], least: int) -> dict[str, object]:
    """The fields of a `SplitStatistics`."""
    tables: dict[str, object] = {"images": len(found), "classes": _by_class(experiment, found, least)}
    for name, edges in EDGES.items():
        places = np.searchsorted(edges[1:-1], [getattr(one, name) for one in found], side="right")
        tables[name] = carried(np.bincount(places, minlength=len(edges) - 1).tolist(), least)
    return tables


def _by_class(experiment: Experiment, found: Sequence[_Look], least: int) -> list[int]:
    counts = [0] * len(experiment.data.classes)
    for one in found:
        for label in one.labels:
            counts[label] += 1
    if experiment.data.task == "multilabel":
        return [carried([count, len(found) - count], least)[0] for count in counts]
    order = class_order(experiment)
    left = [0] * len(counts)
    for place, count in zip(order, carried([counts[place] for place in order], least), strict=True):
        left[place] = count
    return left
