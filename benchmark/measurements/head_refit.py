"""Compares ways to solve the classifier anew on the features that a federation has made, on folds of HAM10000.

    python -m benchmark.measurements.head_refit --out benchmark/results/head_refit.json
    python -m benchmark.measurements.head_refit --trained-by pooled --set training.learning_rate=0.001
    python -m benchmark.measurements.head_refit --method linear_probe --folds 2 --json

Each fold trains the preset ham10000 in the plain loop, with its own test images and seed: by its four sites, by all
their images in one place (`pooled`), or by each site alone (`local`), of which the one counts whose trained classifier
is the best on all sites' validation images. Every way is then taken on the same features: penalties are chosen on the
validation images of those who train, or by leaving out one training image at a time. Every solved head has the
temperature that suits the validation images, as the product's has; the trained one is as the last round left it. All
training images are in the sums, also of classes below `limits.min_images_per_class`. Test images, always those of all
sites, choose nothing.

With `--out` the command can be stopped: given again, or with more folds, it goes on after the last finished one.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch

from benchmark.measurements.intervals import over_seeds
from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import begun, finish, markdown_table, write_result
from benchmark.oracle.baselines import pooled
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.data.site_data import SiteData
from pt_peft.environment import Machine
from pt_peft.files import check_place
from pt_peft.presets import HAM10000_PENALTIES, ham10000, override
from pt_peft.statistics.closed_form import Kind, LinearHead, candidates, leave_one_out
from pt_peft.statistics.moments import Float, class_counts, class_weights, moments, total
from pt_peft.statistics.temperature import best_temperature, log_losses
from pt_peft.training.metrics import evaluate_predictions
from pt_peft.training.trainer import LocalTrainer

LDA = (1e-3, 1e-2, 0.03, 0.1, 0.3, 0.6, 0.9)
FIXED = 0.1
METRICS = ("balanced_accuracy", "accuracy", "auroc")
TRAINED_BY = ("federation", "pooled", "local")

Score = dict[str, float]


class Fold(TypedDict):
    """One fold."""

    fold: int
    commit: str
    """Of the code that made it."""
    ways: dict[str, Score]
    """Test metrics by way."""
    penalties: dict[str, float]
    """What each way has chosen."""
    alone: str | None
    """The site whose model it is, if each has trained alone."""


class Settings(TypedDict):
    """What all folds of a result file have in common."""

    method: str
    trained_by: str
    """One of `TRAINED_BY`."""
    fields: list[str]
    """Those of the experiment that are not the preset's."""
    rounds: int
    machine: Machine


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    settings: Settings
    folds: list[Fold]
    summary: list[dict[str, Any]]
    """By way the mean over folds, and how the balanced accuracy differs from the trained head's: the mean, and the ends
    `low` and `high` of its 95 % t interval over folds, null for a single fold."""


class Images:
    """Features and labels of all sites' images in one split."""

    def __init__(self, features: Sequence[np.ndarray], labels: Sequence[np.ndarray]):
        """Takes both site by site."""
        self.by_site = [*zip(features, labels, strict=True)]
        self.features = np.concatenate(features).astype(np.float64)
        self.labels = np.concatenate(labels)

    def score(self, logits: Float) -> Score:
        """The metrics of logits (N,K)."""
        found: Any = evaluate_predictions(torch.from_numpy(logits), torch.from_numpy(self.labels))
        return {name: float(found[name]) for name in METRICS}

    def best(self, heads: Sequence[LinearHead]) -> int:
        """The place of the head with the best balanced accuracy; of equal ones the last, with the largest penalty."""
        values = [self.score(head.logits(self.features))["balanced_accuracy"] for head in heads]
        return max(range(len(heads)), key=lambda place: (values[place], place))

    def calibrated(self, head: LinearHead) -> LinearHead:
        """The head at its temperature on these images."""
        return head.at_temperature(best_temperature(log_losses(head.logits(self.features), self.labels)))


def towards(trained: LinearHead, train: Images, weights: Float, penalties: Sequence[float]) -> list[LinearHead]:
    """Ridge heads whose penalty is on the distance from a multiple of the trained head, not from zero.

    min Σ w ‖W z + b - e_y‖² / Σ w + λ ‖W - s V‖², with V the trained head for z, and s the multiple that fits e_y best:
    the ridge regression of what s V leaves.
    """
    weight = weights[train.labels] / weights[train.labels].sum()
    targets = np.eye(len(weights))[train.labels]

    def centred(values: Float) -> Float:
        return values - weight @ values

    answers, wanted = centred(trained.logits(train.features)), centred(targets)
    answers -= answers.mean(axis=1, keepdims=True)
    multiple = (weight @ (answers * wanted)).sum() / (weight @ np.square(answers)).sum()
    mean = weight @ train.features
    deviation = np.sqrt(weight @ np.square(train.features - mean))
    inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    standard = (train.features - mean) * inverse
    values, vectors = np.linalg.eigh(standard.T @ (standard * weight[:, None]))
    crossed = (wanted - multiple * answers).T @ (standard * weight[:, None]) @ vectors
    kept = multiple * (trained.weight - trained.weight.mean(axis=0))
    heads: list[LinearHead] = []
    for penalty in penalties:
        whole = kept + (crossed / (values + penalty)) @ vectors.T * inverse
        heads.append(LinearHead(whole, weight @ targets - whole @ mean))
    return heads


def ways(trained: LinearHead, train: Images, val: Images) -> dict[str, tuple[LinearHead, float]]:
    """Every way's head, and the penalty that it has chosen.

    Args:
        trained: the federation's.
        train: training images.
        val: validation images.
    """
    classes = len(trained.bias)
    weights = class_weights(class_counts(train.labels, classes))
    sums = {
        kind: total([moments(*one, classes, weight) for one in train.by_site])
        for kind, weight in (("ridge", weights), ("lda", None))
    }

    def solved(kind: Kind, penalties: Sequence[float]) -> list[LinearHead]:
        return candidates(kind, sums[kind], weights if kind == "ridge" else None, penalties)

    def left_out(kind: Kind, penalties: Sequence[float]) -> int:
        weight = weights if kind == "ridge" else None
        found = leave_one_out(kind, sums[kind], weight, penalties, train.features, train.labels)
        values = [train.score(logits)["balanced_accuracy"] for logits in found]
        return max(range(len(values)), key=lambda place: (values[place], place))

    made: dict[str, tuple[LinearHead, float]] = {"trained": (trained, 0.0)}
    kinds: tuple[tuple[Kind, tuple[float, ...]], ...] = (("ridge", HAM10000_PENALTIES), ("lda", LDA))
    for kind, penalties in kinds:
        heads = solved(kind, penalties)
        chosen: dict[str, Callable[[], int]] = {
            "validation": lambda heads=heads: val.best(heads),
            "leave-one-out": lambda kind=kind, penalties=penalties: left_out(kind, penalties),
            f"{FIXED:g}": lambda penalties=penalties: penalties.index(FIXED),
        }
        for by, choose in chosen.items():
            place = choose()
            made[f"{kind}, {by}"] = heads[place], penalties[place]
    near = towards(trained, train, weights, HAM10000_PENALTIES)
    made["towards trained, validation"] = near[place := val.best(near)], HAM10000_PENALTIES[place]
    sure = val.calibrated(trained)
    means: list[LinearHead] = []
    for head in solved("ridge", HAM10000_PENALTIES):
        other = val.calibrated(head)
        means.append(LinearHead((sure.weight + other.weight) / 2, (sure.bias + other.bias) / 2))
    made["mean of both, validation"] = means[place := val.best(means)], HAM10000_PENALTIES[place]
    return {name: (head if name == "trained" else val.calibrated(head), by) for name, (head, by) in made.items()}


def measured(settings: Settings, fold: int, commit: str) -> Fold:
    """Trains a fold by the code of `commit`, and takes every way."""
    experiment, site = ham10000()
    method = settings["method"]
    options = experiment.method.options if method == experiment.method.name else {}
    own = [f"method.name={method}", f"method.options={json.dumps(options)}", f"seed={fold}", "head.finish=trained"]
    own += [f'data.fold={{"number": {fold}, "of": 5}}', *settings["fields"]]
    experiment = override(experiment, own)
    columns = site.data.columns.model_copy(update={"split": None})
    site = site.model_copy(update={"data": site.data.model_copy(update={"columns": columns})})
    trainer = make_trainer(experiment, site)
    sites = load_sites(experiment, site, [*experiment.federation.sites])
    groups = {
        "federation": [sites],
        "pooled": [{"pooled": pooled(sites)}],
        "local": [{name: data} for name, data in sites.items()],
    }[settings["trained_by"]]
    found = [_of_a_model(trainer, group, sites) for group in groups]
    best = max(range(len(found)), key=lambda place: found[place].val["balanced_accuracy"])
    return {
        "fold": fold,
        "commit": commit,
        "ways": found[best].ways,
        "penalties": found[best].penalties,
        "alone": next(iter(groups[best])) if len(groups) > 1 else None,
    }


@dataclass(frozen=True)
class OfAModel:
    """What every way makes of one model's features."""

    val: Score
    """Of the trained classifier on all sites' validation images."""
    ways: dict[str, Score]
    penalties: dict[str, float]


def _of_a_model(trainer: LocalTrainer, training: Mapping[str, SiteData], everybody: Mapping[str, SiteData]) -> OfAModel:
    """Trains on the images of `training`, and takes every way; test images are those of `everybody`."""
    tensors = federate(trainer, training).tensors

    def images(sites: Mapping[str, SiteData], split: str) -> Images:
        parts = [getattr(data, split) for data in sites.values()]
        return Images([trainer.features(tensors, one, "none") for one in parts], [one.labels for one in parts])

    trained = LinearHead(tensors["head.weight"].astype(np.float64), tensors["head.bias"].astype(np.float64))
    made = ways(trained, images(training, "train"), images(training, "val"))
    val, test = images(everybody, "val"), images(everybody, "test")
    return OfAModel(
        val.score(trained.logits(val.features)),
        {name: test.score(head.logits(test.features)) for name, (head, _) in made.items()},
        {name: penalty for name, (_, penalty) in made.items() if name != "trained"},
    )


def summary(folds: Sequence[Fold]) -> list[dict[str, Any]]:
    """By way what `Result` says."""
    rows: list[dict[str, Any]] = []
    for name in folds[0]["ways"]:
        values = {metric: np.array([one["ways"][name][metric] for one in folds]) for metric in METRICS}
        trained = [one["ways"]["trained"]["balanced_accuracy"] for one in folds]
        difference = over_seeds((values["balanced_accuracy"] - trained).tolist())
        means = {metric: float(value.mean()) for metric, value in values.items()}
        rows.append(
            {"way": name, **means, "difference": difference.value, "low": difference.low, "high": difference.high}
        )
    return rows


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the result file and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.head_refit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", default="lora_vpt", help="that makes the features (default: %(default)s)")
    parser.add_argument(
        "--trained-by", choices=TRAINED_BY, default="federation", help="who trains (default: %(default)s)"
    )
    parser.add_argument("--folds", type=int, default=3, help="folds of five (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the experiment")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    check_positive(options, "folds")
    if options.out:
        check_place(options.out)
    origin = provenance()
    settings: Settings = {
        "method": options.method,
        "trained_by": options.trained_by,
        "fields": options.set,
        "rounds": override(ham10000()[0], options.set).federation.rounds,
        "machine": origin["machine"],
    }
    empty = {"provenance": origin, "settings": settings, "folds": [], "summary": []}
    result = cast(Result, (begun(options.out, settings) if options.out else None) or empty)
    for number in range(len(result["folds"]) + 1, options.folds + 1):
        result["folds"].append(measured(settings, number, origin["commit"]))
        result["summary"] = summary(result["folds"])
        if options.out:
            write_result(options.out, result)
        print(f"fold {number}: {result['folds'][-1]['ways']['trained']}", file=sys.stderr, flush=True)
    finish(options, result, table(result))


def table(result: Result) -> str:
    """The summary as a Markdown table."""
    header = ["", *(name.replace("_", " ") for name in METRICS), "against trained"]
    lines: list[list[str]] = []
    for row in result["summary"]:
        against = f"{row['difference']:+.3f}"
        if row["low"] is not None:
            against += f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append([row["way"], *(f"{row[name]:.3f}" for name in METRICS), against])
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
