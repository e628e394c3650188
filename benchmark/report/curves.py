"""What a federation reaches round by round, and what it costs to reach a target."""

from typing import NamedTuple

from benchmark.report.panels import Model, Panel
from benchmark.report.statistics import Estimate, over_seeds
from benchmark.sweep.result_files import Cell

TARGET_SHARE = 0.95


class Point(NamedTuple):
    """After `rounds` rounds and `wire_bytes` of all sites; value is the validation metric, mean over sites."""

    rounds: int
    wire_bytes: int
    value: float


def validation_curve(cell: Cell, metric: str) -> list[Point]:
    """The model before each round that was validated, then the final one."""
    spent, curve = 0, []
    for index, one in enumerate(cell.rounds):
        curve.append((index, spent, one.val))
        spent += one.bytes_in + one.bytes_out
    curve.append((len(cell.rounds), spent, cell.final.val.mean if cell.final.val else None))
    valued = [(rounds, spent, scalars.value(metric)) for rounds, spent, scalars in curve if scalars]
    return [Point(*one) for one in valued if one[2] is not None]


def mean_curve(panel: Panel, model: Model, metric: str) -> dict[int, Estimate]:
    """Over seeds, by round; rounds that not every seed validated are left out."""
    by_seed = [
        {point.rounds: point.value for point in validation_curve(cell, metric)} for cell in panel.cells[model].values()
    ]
    shared = sorted(set.intersection(*(set(curve) for curve in by_seed)))
    return {rounds: over_seeds([curve[rounds] for curve in by_seed]) for rounds in shared}


def default_target(panel: Panel, models: list[Model], metric: str) -> float | None:
    """95 % of the best final validation value, mean over seeds; None where no model has one."""
    finals = []
    for model in models:
        values = [cell.final.val.mean.value(metric) if cell.final.val else None for cell in panel.cells[model].values()]
        if None not in values:
            finals.append(over_seeds(values).value)
    return TARGET_SHARE * max(finals) if finals else None


def bytes_to_reach(cell: Cell, metric: str, target: float) -> int | None:
    """Bytes of all sites in both directions until the validation value first is at least `target`; None if it never is."""
    return next((point.wire_bytes for point in validation_curve(cell, metric) if point.value >= target), None)
