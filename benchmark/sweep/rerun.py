"""Runs recorded runs again from scratch, and compares what comes out with what is recorded."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import JsonValue

from benchmark.oracle.predictions import Predictions
from benchmark.sweep.cells import Cell
from benchmark.sweep.records import BaselineRecord, CellRecord, Engine, FailureRecord, metric_of
from benchmark.sweep.result_file import Contents
from benchmark.sweep.runs import run_cell
from benchmark.sweep.suite import Suite
from benchmark.sweep.sweep import Sweep, Wanted
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Precision
from pt_peft.federation.reports import SplitMetrics
from pt_peft.schema import parse
from pt_peft.seeds import derive_seed

Recorded = CellRecord | BaselineRecord
"""What can be compared: a trial keeps no test image's prediction."""
METRICS = ("accuracy", "balanced_accuracy", "auroc")
"""Metrics of all sites' test images together that are held to the tolerance."""
Verdict = Literal["identical", "alike", "different", "not rerun"]
"""``identical``: all that was counted, and every logit or metric to the last bit. ``alike``: all that was counted, and
the metrics within the tolerance, by predictions more alike than unrelated models'. ``different``: anything else
that was rerun."""
FINE = ("identical", "alike")
BY_NAME = ("method", "seed", "data.fold", "partition", "federation.rounds")
"""What of an experiment a run's name stands for in its suite."""


@dataclass(frozen=True)
class Side:
    """Where and how one of the two runs was made."""

    engine: Engine
    precision: Precision | None
    """Null in records of earlier versions, whose experiments say it."""
    seconds: float
    """Wall time."""
    provenance: dict[str, JsonValue]
    """A `RunProvenance`."""


@dataclass(frozen=True)
class Metric:
    """A metric of a model's predictions for all sites' test images, recorded and found again."""

    model: str
    """``federated``, or the baseline's name."""
    metric: str
    recorded: float | None
    rerun: float | None

    @property
    def points(self) -> float:
        """Rerun less recorded, percentage points; infinite if one of the two is undefined."""
        if self.recorded is None or self.rerun is None:
            return 0.0 if self.recorded == self.rerun else float("inf")
        return 100 * (self.rerun - self.recorded)


@dataclass(frozen=True)
class Comparison:
    """A recorded run beside the same run made again."""

    name: str
    verdict: Verdict
    reasons: list[str]
    """What differs that should be equal, or why it was not rerun."""
    notes: list[str]
    """What a reader has to know beside the verdict."""
    metrics: list[Metric]
    agreement: float | None
    """Share of test images (for ``multilabel`` of their labels) that both predict alike; null for baselines, which keep
    no predictions."""
    max_logit_difference: float | None
    """Null for baselines. Logits are kept in float16."""
    recorded: Side
    rerun: Side | None


def draw(contents: Contents, number: int, seed: int, wanted: Wanted) -> list[Recorded]:
    """`number` finished cells and baselines, or all if there are fewer, drawn at random from the `wanted` ones."""
    finished = [
        run
        for run in contents.runs.values()
        if isinstance(run, CellRecord | BaselineRecord) and wanted(run.axes.model_dump())
    ]
    return sorted(finished, key=lambda run: derive_seed(seed, "rerun", run.name))[:number]


def compare(
    suite: Suite,
    contents: Contents,
    drawn: Iterable[Recorded],
    engine: Engine | None,
    tolerance: float,
) -> Iterator[Comparison]:
    """Runs each of `drawn` again, by its recorded experiment on the images and weights that `suite` names.

    Args:
        suite: this clone's.
        contents: of the result file.
        drawn: from `contents`.
        engine: what runs them; None: what ran each before.
        tolerance: by how many percentage points each of `METRICS` may differ in a run that is ``alike``.

    Raises:
        UserError: if images or weights that `suite` names are not there.
    """
    drawn = list(drawn)
    planned = _planned(suite, contents, drawn)
    for record in drawn:
        try:
            cell, reasons, notes = _cell(record, suite, planned)
        except UserError as error:
            yield _not_rerun(record, str(error))
            continue
        again = run_cell(cell, engine or record.engine, verify=False)
        if isinstance(again, CellRecord | BaselineRecord):
            yield _compared(record, again, reasons, notes, tolerance)
        else:
            yield _not_rerun(record, again.reason if isinstance(again, FailureRecord) else again.kind, notes)


def _planned(suite: Suite, contents: Contents, drawn: list[Recorded]) -> Mapping[str, Cell]:
    """What `suite` makes where those `drawn` stand, by name; needs no images of other cells. Raises UserError."""
    data, backbones = ({getattr(run.axes, axis) for run in drawn} for axis in ("data", "backbone"))
    part = suite.model_copy(update={"data": {name: task for name, task in suite.data.items() if name in data}})
    grid = Sweep(part, Path(), "reference", 0).grid(lambda place: place["backbone"] in backbones)
    return {cell.name: cell for cell in grid.runs(list(contents.choices.values()))}


def _cell(record: Recorded, suite: Suite, planned: Mapping[str, Cell]) -> tuple[Cell, list[str], list[str]]:
    """What is run in place of `record`, why it is not what its name says, and what else is to be said of it.

    Raises:
        UserError: if nothing can be run.
    """
    if (plan := planned.get(record.name)) is None:
        raise UserError(f"the suite '{suite.name}' of this clone makes no such cell")
    said, notes = record.experiment, list[str]()
    now = plan.experiment.model_dump(mode="json")
    if suite.backbones[record.axes.backbone].pretraining and said.get("backbone") != now["backbone"]:
        said = {**said, "backbone": now["backbone"]}
        notes.append("starts from weights that were pre-trained here, which are not those of the record")
    fields = list(_differing(said, now))
    if fields:
        notes.append(f"the suite of this clone would make another experiment: {', '.join(fields)}")
    reasons = [
        f"{field} of the experiment" for field in fields if f"{field}.".startswith(tuple(f"{one}." for one in BY_NAME))
    ]
    experiment = parse(Experiment, said, "its experiment, by this code")
    site = plan.site.model_copy(update={"compile": record.compiled})
    return Cell(record.kind, record.axes, experiment, site, plan.baseline), reasons, notes


def _differing(one: object, other: object, place: str = "") -> Iterator[str]:
    """Names of the fields, ``training.learning_rate``, whose values differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        if one != other:
            yield place
        return
    for field in one | other:
        yield from _differing(one.get(field), other.get(field), f"{place}.{field}".lstrip("."))


def _compared(record: Recorded, again: Recorded, reasons: list[str], notes: list[str], tolerance: float) -> Comparison:
    before, after = _facts(record), _facts(again)
    reasons = [*reasons, *(what for what in before if what in after and before[what] != after[what])]
    metrics = list(_metrics(record, again))
    reasons += [f"{one.metric} of {one.model}" for one in metrics if not abs(one.points) <= tolerance]
    recorded, rerun = _side(record), _side(again)
    if recorded.precision and recorded.precision != rerun.precision:
        notes = [*notes, f"computed in {rerun.precision} here, in {recorded.precision} there"]
    agreement = difference = None
    if isinstance(record, CellRecord) and isinstance(again, CellRecord):
        mine, other = record.predictions, again.predictions
        if mine.logits.shape == other.logits.shape:
            same_answer = _answers(mine) == _answers(other)
            agreement = float(same_answer.mean())
            # Metrics can be equal though images of a class have changed places. Rounding leaves two runs of one seed
            # much more alike than unrelated models are; the second term is three standard errors, for few images.
            unrelated = _unrelated(mine, other)
            if (~same_answer).sum() > unrelated / 2 + 3 * unrelated**0.5:
                reasons.append("predictions")
            difference = float(np.abs(mine.logits.astype(np.float64) - other.logits).max())
        same = difference == 0 and record.final.test == again.final.test
    else:
        same = isinstance(record, BaselineRecord) and isinstance(again, BaselineRecord) and record.rows == again.rows
    verdict: Verdict = "different" if reasons else "identical" if same else "alike"
    return Comparison(record.name, verdict, reasons, notes, metrics, agreement, difference, recorded, rerun)


def _not_rerun(record: Recorded, reason: str, notes: Iterable[str] = ()) -> Comparison:
    return Comparison(record.name, "not rerun", [reason], [*notes], [], None, None, _side(record), None)


def _facts(run: Recorded) -> dict[str, object]:
    """What does not depend on how numbers are rounded, by what it is. The experiment is the same by construction."""
    facts: dict[str, object] = {"what the images mean": run.site_data}
    if isinstance(run, BaselineRecord):
        return facts | {
            "models": [row.name for row in run.rows],
            "numbers of test images": [_counts(row.test.sites) for row in run.rows],
            "labels of the test images": [_labels(row.test.pooled, run) for row in run.rows],
        }
    predictions = run.predictions
    if predictions.group is not None:  # records of earlier versions have none
        facts["groups of the test images"] = predictions.group.tolist()
    return facts | {
        "exchanged parameters": run.exchanged_parameters,
        "bytes by round": [(one.round, one.bytes_in, one.bytes_out) for one in run.rounds],
        "bytes of statistics": run.statistics,
        "numbers of training images": [
            {name: site.num_samples for name, site in one.sites.items()} for one in run.rounds
        ],
        "numbers of validation images": run.final.val and _counts(run.final.val.sites),
        "numbers of test images": _counts(run.final.test.sites),
        "labels of the test images": predictions.labels.tolist(),
        "sites of the test images": [predictions.sites[site] for site in predictions.site],
    }


def _counts(sites: Mapping[str, Any]) -> dict[str, int | None]:
    return {name: metrics.count for name, metrics in sites.items()}


def _labels(metrics: SplitMetrics, run: Recorded) -> list[int]:
    """Images of each class; for ``multilabel`` with each label."""
    data = run.experiment["data"]
    if isinstance(data, dict) and data["task"] == "multilabel":
        return [fn + tp for _, _, fn, tp in metrics.confusion]
    return [sum(row) for row in metrics.confusion]


def _metrics(record: Recorded, again: Recorded) -> Iterator[Metric]:
    found = _tests(again)
    for model, before in _tests(record).items():
        if after := found.get(model):
            for metric in METRICS:
                yield Metric(model, metric, metric_of(before, metric), metric_of(after, metric))


def _tests(run: Recorded) -> dict[str, SplitMetrics]:
    if isinstance(run, BaselineRecord):
        return {row.name: row.test.pooled for row in run.rows}
    return {"federated": run.final.test.pooled}


def _answers(predictions: Predictions) -> np.ndarray:
    logits = predictions.logits
    return logits > 0 if predictions.labels.ndim == 2 else logits.argmax(axis=1)


def _unrelated(one: Predictions, other: Predictions) -> float:
    """How many answers would differ between two models with these confusion counts and nothing else in common."""
    labels = one.labels + 2 * np.arange(one.labels.shape[1]) if one.labels.ndim == 2 else one.labels
    counts = np.zeros((2, labels.max() + 1, one.logits.shape[1] if one.labels.ndim == 1 else 2))
    for which, predictions in enumerate((one, other)):
        np.add.at(counts[which], (labels.ravel(), _answers(predictions).ravel().astype(int)), 1)
    images = counts[0].sum(axis=1)
    return float((images - counts.prod(axis=0).sum(axis=1) / images.clip(1)).sum())


def _side(run: Recorded) -> Side:
    return Side(run.engine, run.precision, run.seconds["total"], run.provenance.model_dump(mode="json"))
