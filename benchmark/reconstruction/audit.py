"""Audits experiments: trains what leaves a site, attacks it, and compares with chance."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmark.measurements.provenance import provenance
from benchmark.oracle.reference import load_sites, make_trainer
from benchmark.reconstruction.attacker import Attacker, Evidence, Floats, evidence
from benchmark.reconstruction.attacks import ATTACKS
from benchmark.reconstruction.chance import ALPHA, LEAST_OTHERS, Comparison, compare, to_mean_of_others
from benchmark.reconstruction.optimisation import Budget
from benchmark.reconstruction.seen import Seen, seen_by_all, seen_by_server
from benchmark.reconstruction.similarity import Nearness, nearness
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.training.trainer import LocalTrainer

PAYLOAD, ADAPTER = "payload", "adapter"
"""What is attacked: what one site sends in its first round, or the final adapter of all sites."""


@dataclass(frozen=True)
class Subject:
    """An experiment to audit."""

    label: str
    """Its name in the tables."""
    experiment: Experiment
    site: Site
    names: tuple[str, ...]
    """Names of the sites, sorted. The payload is that of the first."""
    views: tuple[str, ...] = (PAYLOAD, ADAPTER)
    """What is attacked."""


@dataclass(frozen=True)
class Design:
    """How all subjects are audited."""

    iterations: int
    """Most steps of each search."""
    seconds: float
    """Most wall time of each search."""
    seed: int
    """Of the starts of searches."""


def audit(subjects: Sequence[Subject], design: Design) -> dict:
    """The content of a result file. Raises UserError if an experiment cannot be audited."""
    return {
        "provenance": provenance(),
        "design": {**asdict(design), "alpha": ALPHA},
        "audits": [audit_one(subject, design) for subject in subjects],
    }


def audit_one(subject: Subject, design: Design) -> dict:
    """One experiment's entry in the result file. Raises UserError if it cannot be audited."""
    started = time.monotonic()
    experiment = subject.experiment
    sites = load_sites(experiment, subject.site, list(subject.names))
    trainer = make_trainer(experiment, subject.site)
    audited, first = {}, subject.names[0]
    # Whoever reads ciphertexts alone has no payload to attack; the adapter is decrypted in the end.
    if PAYLOAD in subject.views and experiment.encryption is None:
        audited[PAYLOAD] = {first: sites[first]}
    if ADAPTER in subject.views:
        audited[ADAPTER] = sites
    findings = [one for view, of in audited.items() for one in _findings(trainer, view, of, design)]
    for one in findings:
        one["p"] = min(1.0, one["p"] * len(findings))  # Bonferroni
        one["found"] = one["p"] < ALPHA
    best = min(findings, key=lambda one: (not one["found"], -one["psnr"] if one["found"] else one["p"]), default=None)
    entry = {
        "name": subject.label,
        "digest": experiment.digest(),
        "experiment": experiment.model_dump(mode="json"),
        "site": first,
        "images": len(sites[first].train),
        "sites": {name: len(data.train) for name, data in sites.items()},
        "findings": findings,
        "best": best,
        "found": any(one["found"] for one in findings),
        "seconds": round(time.monotonic() - started, 1),
    }
    return {**entry, "verdict": verdict(entry)}


def verdict(entry: dict) -> str:
    """What an audit says, in a sentence.

    Args:
        entry: an experiment's, without its verdict.
    """
    name, best = entry["name"], entry["best"]
    if best is None:
        return f"{name}: nothing to attack: no attack finds what it needs in what leaves."
    chance, swapped = best["chance"]["psnr"], best["swapped"]
    numbers = (
        f"the nearest of {best['members']} training image(s) at {best['psnr']:.1f} dB, the nearest of as many others "
        f"at {chance['mean']:.1f} ({chance['low']:.1f} to {chance['high']:.1f})"
        + ("" if swapped is None else f", and {swapped['psnr']:.1f} from a round with other images")
        + f"; p = {best['p']:.2g}"
    )
    attack = f"'{best['attack']}' on the {best['evidence']} of the {best['view']}"
    if entry["found"]:
        return f"{name}: FOUND: {attack} comes nearer to training images than chance: {numbers}."
    return f"{name}: nothing beyond chance in {len(entry['findings'])} attacks; the nearest, {attack}: {numbers}."


def _findings(trainer: LocalTrainer, view: str, sites: dict[str, SiteData], design: Design) -> list[dict]:
    """All attacks on one view, with `p` of each by itself."""
    others = _joined([split for data in sites.values() for split in (data.val, data.test)])
    members = _joined([data.train for data in sites.values()])
    turned = bool({"flip", "rotate90"} & set(trainer.experiment.data.augment))
    if len(others) < LEAST_OTHERS:
        raise UserError(
            f"experiment '{trainer.experiment.name}': {', '.join(sites)} has {len(others)} validation and test images; "
            f"at least {LEAST_OTHERS} would be right, to tell what chance gives."
        )
    seen = _seen(trainer, view, sites)
    swapped = _seen(trainer, view, {name: _swapped(data) for name, data in sites.items()})
    to_mean = to_mean_of_others(np.concatenate([members.images, others.images]))
    found = []
    for piece, of_others in zip(evidence(seen), evidence(swapped), strict=True):
        for name in ATTACKS:
            started = time.monotonic()
            candidates, iterations = _build(trainer, seen, name, piece, design)
            if candidates is None:
                continue
            seconds = round(time.monotonic() - started, 1)
            control, _ = _build(trainer, swapped, name, of_others, design)
            entry = {"view": view, "attack": name, "evidence": piece.kind, "candidates": len(candidates)}
            entry |= {"iterations": iterations, "seconds": seconds, "members": len(members), "others": len(others)}
            to_members, to_others = (nearness(candidates, split.images, turned) for split in (members, others))
            entry |= _fields(compare(to_members, to_others, to_mean))
            # The same attack on a model that saw others: as near to members as it comes without them.
            entry["swapped"] = None if control is None else _nearest(nearness(control, members.images, turned))
            found.append(entry)
    return found


def _seen(trainer: LocalTrainer, view: str, sites: dict[str, SiteData]) -> Seen:
    if view == ADAPTER:
        return seen_by_all(trainer, sites)
    ((name, data),) = sites.items()
    return seen_by_server(trainer, name, data.train)


def _build(
    trainer: LocalTrainer, seen: Seen, attack: str, piece: Evidence, design: Design
) -> tuple[Floats | None, int]:
    """What an attack builds, and its iterations."""
    attacker = Attacker(trainer, seen, Budget(design.iterations, design.seconds), design.seed)
    return ATTACKS[attack].build(attacker, piece), attacker.iterations


def _fields(compared: Comparison) -> dict:
    fields = asdict(compared)
    chance = {
        name: dict(zip(("mean", "low", "high"), fields.pop(f"chance_{name}"), strict=True)) for name in ("psnr", "ssim")
    }
    return {**fields, "chance": chance}


def _nearest(near: Nearness) -> dict:
    return {"psnr": float(near.psnr.max()), "ssim": float(near.ssim.max())}


def _swapped(data: SiteData) -> SiteData:
    """The site with as many other images in place of its training images, or with all that it has."""
    others = _joined([data.val, data.test])
    chosen = slice(len(data.train))
    return SiteData(ImageSplit(others.images[chosen], others.labels[chosen]), data.val, data.test)


def _joined(splits: Sequence[ImageSplit]) -> ImageSplit:
    return ImageSplit(
        np.concatenate([split.images for split in splits]), np.concatenate([split.labels for split in splits])
    )
