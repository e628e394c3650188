"""Result files as the sweep leaves them, with chosen accuracies."""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmark.oracle.predictions import Groups, Predictions, group_numbers
from benchmark.sweep.engines import scalars as single_numbers
from benchmark.sweep.records import (
    Axes,
    BaselineRecord,
    BaselineRow,
    CellRecord,
    ChoiceAxes,
    ChoiceRecord,
    FailureRecord,
    Final,
    FinalTest,
    Record,
    Round,
    RunProvenance,
    Scalars,
    SiteRound,
    SuiteRecord,
    TrialRecord,
    TriedSettings,
    Validation,
    Verification,
)
from benchmark.sweep.suite import Suite
from pt_peft.experiment.sections import Task
from pt_peft.federation.reports import SplitMetrics
from pt_peft.training.metrics import evaluate_predictions

RATES = {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5}
"""The learning rates that all methods try, with what validation finds."""
T = TypeVar("T")
TEN = {
    **{
        "linear_probe": 1_351,
        "vpt_shallow": 3_271,
        "vpt_deep": 24_391,
        "dvpt": 6_000,
        "bitfit": 22_000,
        "norm": 11_000,
    },
    **{"lora": 75_000, "lora_vpt": 98_000, "sba": 446_000, "full": 5_500_000},
}
"""Exchanged parameters of ten methods."""
PARAMETERS = {"linear_probe": 1_000, "vpt_shallow": 3_000, "bitfit": 10_000, "lora": 30_000, "full": 1_000_000}
AXES = ("domain", "data", "partition", "backbone", "variant")
DRAW = 1
"""One of the draws in which all intervals of the tests hold the truth; test_report_coverage.py counts how many do."""
SITES = ("north", "south")
PROVENANCE = RunProvenance(
    commit="0123456789abcdef",
    dirty=False,
    versions={"python": "3.11.2", "torch": "2.15.0"},
    machine={"cpu": "a processor", "cores": 2, "memory_gib": 8.0},
    time="2026-11-21T04:55:12+00:00",
)


def known(value: T | None) -> T:
    """`value`, which must be there."""
    assert value is not None
    return value


def accuracy_of(method: str, slope: float, middle: float = 0.6) -> float:
    """On the line of `slope` points a decade that has `middle` at 10^4.5 parameters."""
    return middle + slope / 100 * (np.log10((TEN | PARAMETERS)[method]) - 4.5)


def logits_of(labels: np.ndarray, accuracy: float, seed: object, classes: int = 4) -> np.ndarray:
    """float16 (N,K), of which close to a share `accuracy` is right."""
    generator = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    logits = generator.normal(size=(len(labels), classes))
    right = generator.random(len(labels)) < accuracy
    wrong = (labels + generator.integers(1, classes, len(labels))) % classes
    logits[np.arange(len(labels)), np.where(right, labels, wrong)] += 6
    return logits.astype(np.float16)


def scalars(logits: np.ndarray, labels: np.ndarray, task: Task = "multiclass") -> dict[str, Any]:
    """As a cell has them."""
    return {**evaluate_predictions(torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels), task)}


def write_suite(
    path: Path,
    *,
    panels=(("in-domain", "cifar10", "iid", 4.0),),
    backbones=(("imagenet", 0.6),),
    methods=tuple(PARAMETERS),
    seeds=(0, 1, 2),
    images: int = 300,
    baselines: bool = True,
    tuning: bool = True,
    variants=("default",),
    name: str = "paper",
    same_images: bool = False,
    folds: int | None = None,
    off_the_line: float = 0.0,
    rates: Mapping[float, float] = RATES,
    suite: Mapping[str, Any] | None = None,
) -> Path:
    """Writes all combinations to `path`, and returns it.

    A panel is domain, data, partition and slope; a backbone is its name and middle accuracy. Every seed has test images
    of its own, as folds do, two of a lesion; with `same_images` all seeds have the same. With `folds` the seeds are
    numbers of folds. A variant's name is its ``training.imbalance``. Methods lie
    `off_the_line` by so many standard deviations in points. All methods try `rates`, with what validation
    finds. `suite` has fields of the suite, see `planned`.
    """
    records: list[Record] = [SuiteRecord(name=name, suite=dict(suite or {}))]
    best = max(rates, key=lambda rate: rates[rate])
    off = dict(zip(methods, np.random.default_rng(7).normal(size=len(methods)) * off_the_line / 100, strict=True))
    for domain, data, partition, slope in panels:
        for backbone, middle in backbones:
            for variant in variants:
                axes: dict[str, Any] = dict(zip(AXES, (domain, data, partition, backbone, variant), strict=True))
                for seed in seeds:
                    drawn = 0 if same_images else seed
                    labels = np.random.default_rng(drawn).integers(4, size=images)
                    groups = group_numbers(f"{drawn} {image // 2}" for image in range(images))
                    for method in methods:
                        logits = logits_of(
                            labels,
                            accuracy_of(method, slope, middle) + off[method],
                            (DRAW, *axes.values(), method, seed),
                        )
                        axes_here = {**axes, "method": method, "seed": seed}
                        cell = finished_cell(axes_here, logits, labels, groups=groups)
                        experiment = _experiment(cell.axes, folds=folds, rate=best)
                        records.append(cell.model_copy(update={"experiment": experiment}))
                    if baselines:
                        records.append(_baseline(Axes(**axes, method="pooled", seed=seed), labels, folds))
                if tuning:
                    records += [one for method in methods for one in _tuned({**axes, "method": method}, rates)]
    write_records(path, records)
    return path


def planned(**fields: Any) -> dict[str, Any]:
    """Fields of a valid suite for what `write_suite` writes by default, with others in place."""
    task = {"domain": "in-domain", "sites": list(SITES), "data": {"source": "synthetic"}, "partitions": ["iid"]}
    suite = Suite.model_validate_json(
        json.dumps(
            {
                "name": "paper",
                "methods": list(PARAMETERS),
                "partitions": {"iid": {"kind": "iid"}},
                "backbones": {"imagenet": {}},
                "data": {"cifar10": task},
                "seeds": [0, 1, 2],
                "tuning": {"factors": [0.1, 1, 10], "seed": 100},
                "baselines": "lora",
                **fields,
            }
        )
    )
    return suite.model_dump(mode="json")


def _experiment(axes: Axes, task: Task = "multiclass", folds: int | None = None, rate: float = 1e-3) -> dict[str, Any]:
    fold = {"number": axes.seed, "of": folds} if folds else None
    return {
        "name": axes.run,
        "seed": axes.seed,
        "method": {"name": axes.method},
        "partition": {"kind": "iid" if axes.partition == "iid" else "natural"},
        "select_by": "balanced_accuracy",
        "data": {"task": task, "classes": ["a", "b", "c", "d"], "fold": fold},
        "training": {"imbalance": axes.variant, "learning_rate": rate},
        "federation": {"rounds": 3},
    }


def write_records(path: Path, records: list[Record]) -> None:
    """Writes a result file."""
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The decoded lines of a result file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def change(path: Path, alter: Callable[[dict[str, Any]], object], kind: str = "cell", only: str = "") -> None:
    """Alters the lines of a kind whose name has `only` in it; a true answer removes the line."""
    kept = [
        line for line in lines_of(path) if line["kind"] != kind or only not in line.get("name", "") or not alter(line)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def of_one_class(line: dict[str, Any]) -> None:
    """Gives all test images of a cell's line one label, which leaves AUROC undefined."""
    kept = Predictions.unpack(line["predictions"])
    found = replace(kept, labels=np.zeros_like(kept.labels))
    metrics = found.metrics("multiclass")
    sites = {name: single_numbers(one).model_dump() for name, one in metrics["sites"].items()}
    line.update(predictions=found.pack())
    line["final"]["test"] = {"pooled": metrics["pooled"], "sites": sites}


def finished_cell(
    axes: dict[str, Any],
    logits: np.ndarray,
    labels: np.ndarray,
    task: Task = "multiclass",
    groups: Groups | None = None,
) -> CellRecord:
    """One finished cell, with its predictions."""
    site = (np.arange(len(labels)) % len(SITES)).astype(np.uint16)
    pooled = scalars(logits, labels, task)
    found = single_numbers(pooled)
    mean = found.model_copy(update={"count": None})
    by_site = {one: single_numbers(scalars(logits[site == i], labels[site == i], task)) for i, one in enumerate(SITES)}
    sent = (TEN | PARAMETERS)[axes["method"]]
    report = SiteRound(num_samples=50, train_loss=1.0, seconds=0.7, val=None)
    rounds = [
        Round(
            round=index,
            seconds=1.5,
            bytes_in=8 * sent,
            bytes_out=8 * sent,
            sites=dict.fromkeys(SITES, report),
            val=mean.model_copy(update={"balanced_accuracy": mean.balanced_accuracy * share}),
        )
        for index, share in enumerate((0.4, 0.7, 0.9))
    ]
    return CellRecord(
        name=Axes(**axes).run,
        axes=Axes(**axes),
        engine="reference",
        experiment=_experiment(Axes(**axes), task),
        site_data={},
        exchanged_parameters=sent,
        rounds=rounds,
        final=Final(
            val=Validation(mean=mean, sites=by_site), test=FinalTest(pooled=SplitMetrics(**pooled), sites=by_site)
        ),
        seconds={"total": 10.0, "training": 8.0},
        peak_memory_bytes=10**9,
        verification=Verification(engine="flare", max_difference=3e-8) if axes["seed"] == 0 else None,
        provenance=PROVENANCE,
        predictions=Predictions(list(SITES), logits, labels, site, groups),
    )


def fail_cell(path: Path, name: str, reason: str) -> None:
    """Makes a finished cell a failed one, as a later call of the sweep does."""
    (cell,) = [line for line in lines_of(path) if line.get("name") == name]
    known = {
        field: cell[field] for field in ("name", "axes", "engine", "experiment", "site_data", "seconds", "provenance")
    }
    failed = FailureRecord.model_validate_json(
        json.dumps({**known, "kind": "failure", "run_kind": "cell", "reason": reason, "peak_memory_bytes": None})
    )
    with path.open("a") as file:
        file.write(failed.model_dump_json() + "\n")


def _baseline(axes: Axes, labels: np.ndarray, folds: int | None) -> BaselineRecord:
    rows, place = [], axes.model_dump(exclude={"method", "seed"})
    for row, accuracy in (("pooled", 0.8), *((f"local {site}", 0.5) for site in SITES), ("majority class", 0.25)):
        logits = logits_of(labels, accuracy, (place, row, axes.seed))
        sites = {
            site: single_numbers(scalars(logits[index :: len(SITES)], labels[index :: len(SITES)]))
            for index, site in enumerate(SITES)
        }
        test = FinalTest(pooled=SplitMetrics(**scalars(logits, labels)), sites=sites)
        rows.append(BaselineRow(name=row, test=test))
    return BaselineRecord(
        name=axes.run,
        axes=axes,
        engine="reference",
        experiment=_experiment(axes, folds=folds),
        site_data={},
        seconds={"total": 20.0},
        peak_memory_bytes=1,
        provenance=PROVENANCE,
        rows=rows,
    )


def _tuned(axes: dict[str, Any], rates: Mapping[float, float]) -> list[Record]:
    """Trials of `rates`, and the choice of the best."""
    records: list[Record] = []
    for index, (rate, val) in enumerate(rates.items()):
        place = Axes(**axes, seed=100)
        name, mean = f"{place.run}.trial-{index}", Scalars(accuracy=val, balanced_accuracy=val)
        records.append(
            TrialRecord(
                name=name,
                axes=place,
                engine="reference",
                experiment={**_experiment(place, rate=rate), "name": name},
                site_data={},
                seconds={"total": 10.0},
                peak_memory_bytes=10**9,
                provenance=PROVENANCE,
                val=Validation(mean=mean, sites=dict.fromkeys(SITES, mean), pooled=mean),
            )
        )
    tried = [
        TriedSettings(learning_rate=rate, head_learning_rate=None, options={}, val=val) for rate, val in rates.items()
    ]
    values = list(rates.values())
    return [*records, ChoiceRecord(axes=ChoiceAxes(**axes), trials=tried, chosen=values.index(max(values)))]
