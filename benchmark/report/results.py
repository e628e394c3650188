"""Reads a suite's results, and refuses what does not fit together."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import JsonValue

from benchmark.sweep.records import (
    AnyRun,
    BaselineRecord,
    CellRecord,
    ChoiceAxes,
    ChoiceRecord,
    FailureRecord,
    TrialRecord,
    metric_of,
)
from benchmark.sweep.result_file import Contents, read
from benchmark.sweep.trials import best
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Data, Task

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
        UserError: naming the file and the line, if the file is not there, is damaged or has no cells, and as `checked`
            does.
    """
    results = checked(path, read(path))
    if not (results.cells or results.failed_cells):
        raise UserError(f"{path}: has no cells; run the suite first.")
    return results


def checked(path: Path, contents: Contents) -> Results:
    """Checks whether `contents`, read from `path`, fit together.

    Raises:
        UserError: naming the file and the run, if a run's name or experiment is not what its axes say, a cell has not
            the rounds of its experiment or its predictions give other metrics, a baseline's metrics contradict each
            other, two seeds of one place send different numbers of parameters or have the same logits, two cells of one
            data, partition and seed were tested on different labels, two of one panel have different settings, a choice
            is not the best of its trials or not what they found, or a run has other settings than were chosen.
    """
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
    for run in runs:
        _check_axes(path, run)
    for cell in results.cells:
        _check_rounds(path, cell)
        _check_metrics(path, cell)
    for baseline in results.baselines:
        _check_baseline(path, baseline)
    _check_seeds(path, results.cells)
    _check_labels(path, results.cells)
    _check_settings(path, [*results.cells, *results.failed_cells])
    for choice in results.choices:
        _check_choice(path, choice, results.trials)
    _check_chosen(path, results)
    return results


def _check_axes(path: Path, run: AnyRun) -> None:
    """Checks that a run's name and experiment are those of its place in the grid."""
    axes, kind = run.axes, run.run_kind if isinstance(run, FailureRecord) else run.kind
    if not (run.name.startswith(f"{axes.run}.trial-") if kind == "trial" else run.name == axes.run):
        raise UserError(f"{path}: '{run.name}' has the axes of '{axes.run}'; rerun it, or remove its line.")
    right: dict[str, JsonValue] = {"name": run.name, "seed": axes.seed}
    if kind == "cell":  # baselines are trained by a method of the suite's choice
        right["method.name"] = axes.method
    if kind != "trial" and run.folds:
        right["data.fold.number"] = axes.seed
    for field, value in right.items():
        if (said := _field(run, field)) != value:
            raise UserError(
                f"{path}: the experiment of '{run.name}' has the {field} {said!r}, but by its axes {value!r} would be "
                "right; rerun it, or remove its line."
            )


def _field(run: AnyRun, field: str) -> JsonValue:
    """``section.name`` of a run's experiment; None where it is not there."""
    value: JsonValue = run.experiment
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_rounds(path: Path, cell: CellRecord) -> None:
    planned = _field(cell, "federation.rounds")
    if planned != len(cell.rounds) or any(one.round != index for index, one in enumerate(cell.rounds)):
        raise UserError(
            f"{path}: '{cell.name}' has {len(cell.rounds)} rounds; the {planned} of its experiment, counted from 0, "
            "would be right; rerun that cell."
        )


def _check_seeds(path: Path, cells: list[CellRecord]) -> None:
    """Checks that the seeds of a place send as much, and that none is a copy of another."""
    first: dict[str, CellRecord] = {}
    trained: dict[tuple[str, bytes], str] = {}
    for cell in cells:
        place = cell.axes.run.removesuffix(str(cell.axes.seed))
        other = first.setdefault(place, cell)
        if cell.exchanged_parameters != other.exchanged_parameters:
            raise UserError(
                f"{path}: '{cell.name}' has {cell.exchanged_parameters} exchanged_parameters, but '{other.name}' has "
                f"{other.exchanged_parameters}; rerun one of the two."
            )
        # Without rounds nothing is drawn: a classifier in closed form on the same images is the same.
        twin = trained.setdefault((place, cell.predictions.logits.tobytes()), cell.name) if cell.rounds else cell.name
        if twin != cell.name:
            raise UserError(
                f"{path}: '{cell.name}' has the logits of '{twin}' to the last bit, so the two are no two runs; rerun "
                "one of the two."
            )


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
    """Checks that a cell's metrics, of all sites' images and of each site's, are those that its predictions give."""
    test = cell.final.test
    try:
        found = cell.predictions.metrics(cast(Task, _field(cell, "data.task")))
    except ValueError as error:
        raise UserError(f"{path}: the predictions of '{cell.name}' are not of its experiment: {error}.") from None
    if (sites := found["sites"].keys()) != test.sites.keys():
        raise UserError(
            f"{path}: '{cell.name}' has final.test.sites {', '.join(test.sites)}, but its predictions are of "
            f"{', '.join(sites)}; rerun that cell."
        )
    pairs = [("pooled", test.pooled, found["pooled"])]
    pairs += [(f"sites.{site}", metrics, found["sites"][site]) for site, metrics in test.sites.items()]
    for where, recorded, given in pairs:
        for metric in type(recorded).model_fields:
            said, value = getattr(recorded, metric), given.get(metric)
            if not _close(said, value):
                raise UserError(
                    f"{path}: '{cell.name}' has the final.test.{where}.{metric} {said}, but its predictions give "
                    f"{value}; rerun that cell."
                )


def _close(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= CLOSE
    return one == other


def _check_baseline(path: Path, one: BaselineRecord) -> None:
    """Checks that a baseline's metrics fit its confusion counts and each other: it keeps no predictions."""
    classes = _field(one, "data.classes")
    data = Data.model_construct(task=cast(Task, _field(one, "data.task")), classes=cast(tuple[str, ...], classes or ()))
    for row in one.rows:
        try:
            row.test.pooled.checked(data)
        except UserError as error:
            raise UserError(
                f"{path}: '{one.name}', model '{row.name}': {str(error).removeprefix('report: ')}"
            ) from None
        pooled, sites = row.test.pooled, row.test.sites.values()
        counts = [site.count or 0 for site in sites]
        right = sum(count * site.accuracy for count, site in zip(counts, sites, strict=True)) / max(1, sum(counts))
        for metric, said, value in (("count", sum(counts), pooled.count), ("accuracy", right, pooled.accuracy)):
            if not _close(said, value):
                raise UserError(
                    f"{path}: '{one.name}', model '{row.name}' has the {metric} {value} of all images, but by its "
                    f"sites {said} would be right; rerun it."
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


def _check_choice(path: Path, choice: ChoiceRecord, trials: list[TrialRecord]) -> None:
    """Checks that a choice is the best of its trials, and says of them what their records do."""
    named = f"{path}: the choice for {', '.join(_without_seed(choice.axes))}"
    values = [one.val for one in choice.trials]
    if choice.chosen != (right := best(values)):
        raise UserError(
            f"{named} has 'chosen' {choice.chosen}, but by its values of validation {right} would be right; the same "
            "`run` command chooses anew."
        )
    for index, tried in enumerate(choice.trials):
        records = [
            one
            for one in trials
            if _without_seed(one.axes) == _without_seed(choice.axes) and one.name.endswith(f".trial-{index}")
        ]
        if not records and tried.val is not None:  # one that failed is no trial's
            raise UserError(f"{named} has the value {tried.val} for its trial {index}, of which there is no line.")
        for what, said, found in (
            ("learning_rate", tried.learning_rate, [_field(one, "training.learning_rate") for one in records]),
            ("val", tried.val, [metric_of(one.val.judged, one.select_by) for one in records]),
        ):
            if records and said not in found:
                raise UserError(
                    f"{named} has the {what} {said} for its trial {index}, but '{records[0].name}' has {found[0]}; the "
                    "same `run` command chooses anew."
                )


def _check_chosen(path: Path, results: Results) -> None:
    """Checks that cells and baselines have what trials on their partition, or else on another, chose."""
    choices: dict[tuple[str, ...], dict[str, ChoiceRecord]] = {}
    for one in results.choices:
        choices.setdefault(_without_seed(one.axes, "partition"), {})[one.axes.partition] = one
    for run in [*results.cells, *results.baselines]:
        own = choices.get(_without_seed(run.axes, "partition"), {})
        choice = own.get(run.axes.partition) or (next(iter(own.values())) if len(own) == 1 else None)
        if not (choice and choice.settings):
            continue
        wanted: dict[str, object] = {"training.learning_rate": choice.settings.learning_rate}
        for part, options in choice.settings.options.items():
            wanted |= {f"method.options.{part}.{option}": value for option, value in options.items()}
        for field, value in wanted.items():
            if (said := _field(run, field)) != value:
                raise UserError(
                    f"{path}: the experiment of '{run.name}' has the {field} {said}, but its trials chose {value}; "
                    "rerun it."
                )


def _without_seed(axes: ChoiceAxes, *others: str) -> tuple[str, ...]:
    return tuple(value for axis, value in axes.model_dump().items() if axis not in ("seed", *others))


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
