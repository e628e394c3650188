"""What a federation reaches in each round, and the bytes and seconds it takes to reach a target."""

from typing import NamedTuple

from benchmark.measurements.intervals import Estimate, over_seeds
from benchmark.report.panels import Model, Panel
from benchmark.sweep.records import CellRecord, Scalars, metric_of

TARGET_SHARE = 0.95


class Point(NamedTuple):
    """The validation metric, mean over sites, after `rounds` rounds with `wire_bytes` of all sites and `seconds`."""

    rounds: int
    wire_bytes: int
    seconds: float
    value: float


def validation_curve(cell: CellRecord, metric: str) -> list[Point]:
    """The models at the start of each round, then the final one, where they were validated."""
    spent, after = (
        sum(one.bytes_in + one.bytes_out for one in cell.statistics if one.when == when) for when in ("start", "finish")
    )
    curve: list[tuple[int, int, float, Scalars | None]] = []
    seconds = 0.0
    for index, one in enumerate(cell.rounds):
        curve.append((index, spent, seconds, one.val))
        spent += one.bytes_in + one.bytes_out
        seconds += one.seconds
    curve.append((len(cell.rounds), spent + after, seconds, cell.final.val.mean if cell.final.val else None))
    return [
        Point(rounds, spent, seconds, value)
        for rounds, spent, seconds, scalars in curve
        if scalars and (value := metric_of(scalars, metric)) is not None
    ]


def mean_curve(panel: Panel, model: Model, metric: str) -> dict[int, Estimate]:
    """Means over seeds by round; rounds that not every seed validated are left out."""
    by_seed = [
        {point.rounds: point.value for point in validation_curve(cell, metric)} for cell in panel.cells[model].values()
    ]
    shared = sorted(set.intersection(*(set(curve) for curve in by_seed)))
    return {rounds: over_seeds([curve[rounds] for curve in by_seed]) for rounds in shared}


def default_target(panel: Panel, models: list[Model], metric: str) -> float | None:
    """95 % of the best final validation value (mean over seeds); None where no model has one."""
    finals = []
    for model in models:
        cells = panel.cells[model].values()
        values = [metric_of(cell.final.val.mean, metric) if cell.final.val else None for cell in cells]
        known = [value for value in values if value is not None]
        if len(known) == len(cells):
            finals.append(over_seeds(known).value)
    return TARGET_SHARE * max(finals) if finals else None


def first_at(cell: CellRecord, metric: str, target: float) -> Point | None:
    """Where the validation value first reaches `target`; None if it never does."""
    return next((point for point in validation_curve(cell, metric) if point.value >= target), None)
