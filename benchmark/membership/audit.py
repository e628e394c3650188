"""Audits experiments: trains the models that are missing, attacks each in turn, and summarises over them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from distributed import as_completed
from distributed.scheduler import KilledWorker
from filelock import FileLock, Timeout
from tqdm import tqdm

from benchmark.measurements.intervals import Estimate, over_seeds
from benchmark.measurements.provenance import provenance
from benchmark.membership.attacks import ATTACKS
from benchmark.membership.kept import Kept, fingerprint
from benchmark.membership.models import Design, Observed, Subject, observe, open_sites
from benchmark.membership.success import LEVELS, Success, chance, success
from benchmark.sweep.cluster import workers
from pt_peft.errors import UserError

ALL = "all"
"""Stands for the images of all sites, in place of a site's name."""


@dataclass(frozen=True)
class Opened:
    """A subject and its images."""

    subject: Subject
    sizes: Mapping[str, int]
    """Training images by site."""
    images: str
    """`fingerprint` of the images."""


def audit(subjects: Sequence[Subject], design: Design, folder: Path, jobs: int) -> dict:
    """The content of a result file.

    Args:
        subjects: the experiments.
        design: how all of them are audited.
        folder: keeps the models' answers, see `Kept`; made if missing.
        jobs: models that are trained at the same time; 1 trains them in this process.

    Raises:
        UserError: if an experiment cannot be audited, or another process works in `folder`.
    """
    origin = provenance()
    opened = [_open(subject) for subject in subjects]
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            answers = _answers(opened, design, Kept(folder, design), jobs)
    except Timeout:
        raise UserError(f"{folder}: another process is writing its models there.") from None
    audits = [_summary(one, observed) for one, observed in zip(opened, answers, strict=True)]
    return {
        "provenance": origin,
        "design": {**asdict(design), "models": design.models, "queries": design.queries, "levels": LEVELS},
        "audits": audits,
        "differences": [
            _difference(audits[0], other) for other in audits[1:] if other["images"] == audits[0]["images"]
        ],
    }


def _open(subject: Subject) -> Opened:
    if subject.experiment.data.task == "multilabel":
        raise UserError(
            f"experiment '{subject.label}': field 'data.task' is 'multilabel', where an image has no one confidence to "
            "attack; 'multiclass' or 'ordinal' would be right."
        )
    sites = open_sites(subject)
    return Opened(subject, {name: len(data.train) for name, data in sorted(sites.items())}, fingerprint(sites))


def _answers(opened: Sequence[Opened], design: Design, kept: Kept, jobs: int) -> list[list[Observed]]:
    """The answers of each subject's models, in order. Raises UserError."""
    found = [[kept.read(one.subject, one.images, model) for model in range(design.models)] for one in opened]
    places = [(index, model) for index in range(len(opened)) for model in range(design.models)]
    pending = [(index, model) for index, model in places if found[index][model] is None]
    with tqdm(total=len(places), initial=len(places) - len(pending), unit="model", disable=None) as progress:
        for index, model, observed in _trained([one.subject for one in opened], pending, design, jobs):
            kept.write(opened[index].subject, opened[index].images, model, observed)
            found[index][model] = observed
            progress.update()
    return [[answer for answer in of_subject if answer is not None] for of_subject in found]


def _trained(
    subjects: Sequence[Subject], pending: Sequence[tuple[int, int]], design: Design, jobs: int
) -> Iterator[tuple[int, int, Observed]]:
    """Trains the `pending` models, pairs of a subject's and a model's index; yields both and the answers as models end.

    Raises UserError.
    """
    if min(jobs, len(pending)) <= 1:
        for index, model in pending:
            yield index, model, observe(subjects[index], design, model)
        return
    with workers(min(jobs, len(pending)), None) as client:
        futures = {
            client.submit(observe, subjects[index], design, model, pure=False): (index, model)
            for index, model in pending
        }
        for future in as_completed(futures):
            index, model = futures.pop(future)
            try:
                observed = future.result()
            except KilledWorker:
                raise UserError(
                    f"experiment '{subjects[index].label}': the process that trained model {model} was killed, and so "
                    f"was the next; fewer --jobs than {jobs} may be right, if memory was too small."
                ) from None
            yield index, model, observed
            future.release()


def _summary(one: Opened, observed: Sequence[Observed]) -> dict:
    """An experiment's entry in the result file."""
    is_member = np.stack([model.members for model in observed])
    confidences = np.stack([model.confidences for model in observed])
    right = np.stack([model.right for model in observed])
    site = np.repeat(list(one.sizes), list(one.sizes.values()))
    chosen = {ALL: np.ones(len(site), bool)} | {name: site == name for name in one.sizes if len(one.sizes) > 1}
    attacks = {}
    for name, attack in ATTACKS.items():
        scores = [attack(confidences, is_member, target) for target in range(len(observed))]
        attacks[name] = {
            sites: _over_targets(
                [success(row[mask], truth[mask]) for row, truth in zip(scores, is_member, strict=True)]
            )
            for sites, mask in chosen.items()
        }
    return {
        "name": one.subject.label,
        "digest": one.subject.experiment.digest(),
        "experiment": one.subject.experiment.model_dump(mode="json"),
        "site_data": one.subject.site.data.meaning(),
        "images": one.images,
        "sites": dict(one.sizes),
        "accuracy": {
            kind: asdict(_estimate([row[mask].mean() for row, mask in zip(right, masks, strict=True)]))
            for kind, masks in (("members", is_member), ("others", ~is_member))
        },
        "counts": {sites: _counts(is_member[:, mask]) for sites, mask in chosen.items()},
        "attacks": attacks,
        "seconds": round(sum(model.seconds for model in observed), 1),
    }


def _counts(is_member: np.ndarray) -> dict:
    """The least numbers of members and others over targets, bool (M,N), and what guessing reaches with so many."""
    seen, unseen = int(is_member.sum(axis=1).min()), int((~is_member).sum(axis=1).min())
    return {"members": seen, "others": unseen, "balanced_accuracy_by_chance": chance(seen, unseen)}


def _over_targets(found: Sequence[Success]) -> dict:
    """Means with intervals over targets. Targets share images and shadows, so the intervals are approximate."""

    def estimate(value: Callable[[Success], float | None]) -> dict | None:
        values = [share for one in found if (share := value(one)) is not None]
        return asdict(_estimate(values)) if len(values) == len(found) else None

    return {
        "auc": estimate(lambda one: one.auc),
        "balanced_accuracy": estimate(lambda one: one.balanced_accuracy),
        "advantage": estimate(lambda one: 2 * one.balanced_accuracy - 1),
        "tpr": {f"{level:g}": estimate(lambda one, index=index: one.tpr[index]) for index, level in enumerate(LEVELS)},
        "targets": [asdict(one) for one in found],
    }


def _estimate(shares: Sequence[float]) -> Estimate:
    """The mean of shares, one a target, with an interval within 0 to 1."""
    found = over_seeds(shares)
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def _difference(first: dict, other: dict) -> dict:
    """Differences of AUC by attack, `other` less `first`, over targets with the same members."""

    def change(attack: str, sites: str) -> dict:
        pairs = zip(first["attacks"][attack][sites]["targets"], other["attacks"][attack][sites]["targets"], strict=True)
        return asdict(over_seeds([after["auc"] - before["auc"] for before, after in pairs]))

    return {
        "of": other["name"],
        "to": first["name"],
        "auc": {
            attack: {sites: change(attack, sites) for sites in by_site} for attack, by_site in first["attacks"].items()
        },
    }
