"""Reads a suite's results, and refuses what does not fit together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from benchmark.report.statistics import METRICS, WeightedMetrics
from benchmark.sweep.records import (
    AnyRun,
    Axes,
    BaselineRecord,
    CellRecord,
    ChoiceRecord,
    FailureRecord,
    TrialRecord,
    metric_of,
)
from benchmark.sweep.result_file import read
from pt_peft.errors import UserError

CLOSE = 1e-6
"""How far a metric may be from what the logits give."""


@dataclass(frozen=True)
class Results:
    """What a result file holds, by kind; runs in order of their names."""

    name: str
    """The suite's."""
    suite: dict[str, JsonValue]
    """The suite's fields, as the file has them."""
    cells: list[CellRecord]
    baselines: list[BaselineRecord]
    trials: list[TrialRecord]
    failures: list[FailureRecord]
    choices: list[ChoiceRecord]

    @property
    def runs(self) -> list[AnyRun]:
        """Finished or failed."""
        return [*self.cells, *self.baselines, *self.trials, *self.failures]

    @property
    def failed_cells(self) -> list[FailureRecord]:
        """Federated runs that failed."""
        return [one for one in self.failures if one.run_kind == "cell"]


def read_results(path: Path) -> Results:
    """Reads what ``python -m benchmark run`` wrote to `path`.

    Raises:
        UserError: naming the file and the line or cell, if the file is not there, is damaged or has no cells, a cell's
            predictions give other metrics, two cells of one data, partition and seed were tested on different labels,
            two have the same axes, or two of one panel have different settings.
    """
    contents = read(path)
    runs = [run for _, run in sorted(contents.runs.items())]
    results = Results(
        name=contents.suite.name,
        suite=contents.suite.suite,
        cells=[one for one in runs if isinstance(one, CellRecord)],
        baselines=[one for one in runs if isinstance(one, BaselineRecord)],
        trials=[one for one in runs if isinstance(one, TrialRecord)],
        failures=[one for one in runs if isinstance(one, FailureRecord)],
        choices=list(contents.choices.values()),
    )
    if not (results.cells or results.failed_cells):
        raise UserError(f"{path}: has no cells; run the suite first.")
    _check_axes(path, [*results.cells, *results.failed_cells])
    for cell in results.cells:
        _check_metrics(path, cell)
    _check_labels(path, results.cells)
    _check_settings(path, [*results.cells, *results.failed_cells])
    return results


def _check_axes(path: Path, cells: list[CellRecord | FailureRecord]) -> None:
    first: dict[Axes, str] = {}
    for cell in cells:
        if (other := first.setdefault(cell.axes, cell.name)) != cell.name:
            raise UserError(f"{path}: '{cell.name}' has the same axes as '{other}'; one of the two is too many.")


def _check_labels(path: Path, cells: list[CellRecord]) -> None:
    """Checks that cells of one data, partition and seed were tested on the same labels, of the same groups if known."""
    first: dict[tuple[str, str, str, int], CellRecord] = {}
    for cell in cells:
        axes = cell.axes
        other = first.setdefault((axes.domain, axes.data, axes.partition, axes.seed), cell)
        one, expected = cell.predictions, other.predictions
        for what, mine, wanted in (("labels", one.labels, expected.labels), ("groups", one.group, expected.group)):
            if mine is not None and wanted is not None and not np.array_equal(mine, wanted):
                raise UserError(
                    f"{path}: the {what} of '{cell.name}' are not those of '{other.name}', so the two were not tested "
                    "on the same images; rerun one of the two."
                )


def _check_metrics(path: Path, cell: CellRecord) -> None:
    """Checks that a cell's metrics are those that its predictions give."""
    found = WeightedMetrics(cell.predictions.logits, cell.predictions.labels)
    ones = np.ones((len(cell.predictions.labels), 1), np.float32)
    for metric, value in zip(METRICS, found(ones)[:, 0], strict=True):
        said = metric_of(cell.final.test.pooled, metric)
        if said is not None and not abs(said - value) <= CLOSE:
            raise UserError(
                f"{path}: '{cell.name}' has the final.test.pooled.{metric} {said}, but its predictions give "
                f"{value:.6f}; rerun that cell."
            )


def _check_settings(path: Path, cells: list[CellRecord | FailureRecord]) -> None:
    """Checks that the cells of a panel and backbone differ in nothing but the method, its step sizes and the seed."""
    first: dict[tuple[str, ...], tuple[str, dict[str, JsonValue]]] = {}
    for cell in cells:
        axes, settings = cell.axes, {**compared(cell.experiment), "site_data": cell.site_data}
        place = (axes.domain, axes.data, axes.partition, axes.backbone, axes.variant)
        other, expected = first.setdefault(place, (cell.name, settings))
        if different := [section for section in settings | expected if settings.get(section) != expected.get(section)]:
            raise UserError(
                f"{path}: the experiment of '{cell.name}' has another '{different[0]}' than that of '{other}', so the "
                "two cannot be compared; rerun one of the two."
            )


def compared(experiment: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """`experiment` without what may differ between cells of a panel."""
    own = ("name", "seed", "method")
    rates = ("learning_rate", "head_learning_rate")
    settings = {section: value for section, value in experiment.items() if section not in own}
    data = settings.get("data")
    if isinstance(data, dict) and isinstance(fold := data.get("fold"), dict):
        settings["data"] = {**data, "fold": {"of": fold.get("of")}}
    training = settings.get("training")
    if isinstance(training, dict):
        settings["training"] = {field: value for field, value in training.items() if field not in rates}
    return settings
