"""Reading a suite's results folder, and refusing what does not fit together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.report.statistics import METRICS, WeightedMetrics
from benchmark.sweep.result_files import (
    Baseline,
    Cell,
    Predictions,
    TrialRun,
    Tuning,
    read_predictions,
    read_run,
    read_tuning,
)
from pt_peft.errors import UserError

CLOSE = 1e-6
"""How far a metric may be from what the logits give."""


@dataclass(frozen=True)
class Results:
    """All that a results folder holds; `predictions` are those of the finished cells, by their names."""

    name: str
    cells: list[Cell]
    predictions: dict[str, Predictions]
    baselines: list[Baseline]
    trials: list[TrialRun]
    tuning: list[Tuning]


def read_results(folder: Path) -> Results:
    """Reads what ``python -m benchmark run`` left in `folder`.

    Raises:
        UserError: naming the file, if the folder or its cells are not there, a file is damaged or lacks a field, a finished
            cell's predictions are missing, of another length than its test images or give other metrics, two cells of one
            data, partition and seed were tested on different labels, or two of one panel come of different settings.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; a suite's results folder, such as benchmark/results/smoke, would be right."
        )
    files = sorted((folder / "cells").glob("*.json"))
    if not files:
        raise UserError(f"{folder / 'cells'} has no cells (*.json); run the suite first.")
    cells = [read_run(file, "cells") for file in files]
    by_axes: dict[Axes, Path] = {}
    for cell, file in zip(cells, files, strict=True):
        if cell.axes in by_axes:
            raise UserError(f"{file}: has the same axes as {by_axes[cell.axes].name}; one of the two is too many.")
        by_axes[cell.axes] = file
    predictions = {}
    first: dict[tuple, tuple[Path, np.ndarray]] = {}
    for cell, file in zip(cells, files, strict=True):
        if cell.status == "finished":
            path = file.with_suffix(".npz")
            found = predictions[cell.name] = read_predictions(path, cell)
            key = (cell.axes.domain, cell.axes.data, cell.axes.partition, cell.axes.seed)
            other, labels = first.setdefault(key, (path, found.labels))
            if not np.array_equal(labels, found.labels):
                raise UserError(
                    f"{path}: its labels are not those of {other.name}, so the two were not tested on the same images; "
                    "rerun one of the two."
                )
    if len(predictions) < sum(cell.status == "finished" for cell in cells):
        raise UserError(f"{folder / 'cells'}: two cells have the same name.")
    for cell, file in zip(cells, files, strict=True):
        if cell.status == "finished":
            _check_metrics(file, cell, predictions[cell.name])
    _check_settings(dict(zip(files, cells, strict=True)))
    return Results(
        name=folder.resolve().name,
        cells=cells,
        predictions=predictions,
        baselines=[read_run(file, "baselines") for file in sorted((folder / "baselines").glob("*.json"))],
        trials=[read_run(file, "tuning") for file in sorted((folder / "tuning").glob("*.json"))],
        tuning=read_tuning(folder / "tuning.json"),
    )


def _check_metrics(file: Path, cell: Cell, predictions: Predictions) -> None:
    ones = np.ones((len(predictions.labels), 1), np.float32)
    for metric, value in zip(METRICS, WeightedMetrics(predictions)(ones)[:, 0], strict=True):
        said = cell.final.test.pooled.value(metric)
        if said is not None and not abs(said - value) <= CLOSE:
            raise UserError(
                f"{file}: final.test.pooled.{metric} is {said}, but {file.stem}.npz gives {value:.6f}; rerun that cell."
            )


def _check_settings(cells: dict[Path, Cell]) -> None:
    """That the cells of a panel and backbone differ in nothing but the method, its step sizes and the seed."""
    first: dict[tuple, tuple[Path, dict]] = {}
    for file, cell in cells.items():
        axes = cell.axes
        place = (axes.domain, axes.data, axes.partition, axes.backbone, axes.aggregation)
        settings = _settings(cell.experiment)
        other, expected = first.setdefault(place, (file, settings))
        if different := [section for section in settings | expected if settings.get(section) != expected.get(section)]:
            raise UserError(
                f"{file}: its experiment has another '{different[0]}' than that of {other.name}, so the two cannot be compared; "
                "rerun one of the two."
            )


def _settings(experiment: dict) -> dict:
    own = ("name", "seed", "method")
    rates = ("learning_rate", "head_learning_rate")
    settings = {section: value for section, value in experiment.items() if section not in own}
    training = settings.get("training")
    if isinstance(training, dict):
        settings["training"] = {field: value for field, value in training.items() if field not in rates}
    return settings
