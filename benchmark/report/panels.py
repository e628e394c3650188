"""Cells by what they can be compared within."""

from collections import defaultdict
from functools import cached_property
from typing import NamedTuple

import numpy as np

from benchmark.report.results import Results
from benchmark.report.statistics import METRICS, Estimate, WeightedMetrics, over_seeds, resample
from benchmark.sweep.result_files import Cell


class PanelKey(NamedTuple):
    """Data and how they are spread and aggregated."""

    domain: str
    data: str
    partition: str
    aggregation: str

    def __str__(self) -> str:
        return f"{self.data} ({self.domain}), {self.partition}, {self.aggregation}"


class Model(NamedTuple):
    """A row of a panel."""

    backbone: str
    method: str


class Panel:
    """All finished cells of one data, partition and aggregation. What is compared within it was tested on the same images.

    Attributes:
        cells: Cell by `Model`, then seed; models in order of backbone and exchanged parameters.
    """

    def __init__(self, key: PanelKey, results: Results, replicates: int) -> None:
        self.key = key
        self._replicate_count = replicates
        self._predictions = results.predictions
        cells: dict[Model, dict[int, Cell]] = defaultdict(dict)
        for cell in results.cells:
            if cell.status == "finished" and panel_key(cell) == key:
                cells[Model(cell.axes.backbone, cell.axes.method)][cell.axes.seed] = cell
        sizes = {model: max(cell.exchanged_parameters for cell in by_seed.values()) for model, by_seed in cells.items()}
        order = sorted(cells, key=lambda model: (model.backbone, sizes[model], model.method))
        self.cells = {model: dict(sorted(cells[model].items())) for model in order}
        self.exchanged = {model: sizes[model] for model in order}
        """Parameters that a site sends in a round, head included."""
        self._replicates: dict[tuple[int, ...], dict[Model, np.ndarray]] = {}

    @property
    def backbones(self) -> list[str]:
        """In order of their names."""
        return list(dict.fromkeys(model.backbone for model in self.cells))

    def models(self, backbone: str) -> list[Model]:
        """In order of exchanged parameters."""
        return [model for model in self.cells if model.backbone == backbone]

    def tested(self, model: Model, metric: str) -> dict[int, float | None]:
        """Pooled test metric by seed."""
        return {seed: cell.final.test.pooled.value(metric) for seed, cell in self.cells[model].items()}

    def estimate(self, model: Model, metric: str) -> Estimate | None:
        """Over seeds; None where the metric is undefined for one."""
        values = list(self.tested(model, metric).values())
        return None if None in values else over_seeds(values)

    def common_seeds(self, models: list[Model]) -> tuple[int, ...]:
        """Seeds that all of `models` finished."""
        return tuple(sorted(set.intersection(*(set(self.cells[model]) for model in models)))) if models else ()

    def mean(self, model: Model, metric: str, seeds: tuple[int, ...]) -> float | None:
        """Pooled test metric averaged over `seeds`; None where it is undefined for one."""
        values = [self.tested(model, metric)[seed] for seed in seeds]
        return None if None in values or not values else float(np.mean(values))

    def replicates(self, model: Model, metric: str, seeds: tuple[int, ...]) -> np.ndarray:
        """Bootstrap replicates float64 (R,) of `mean`, paired with those of every other model for the same `seeds`."""
        if seeds not in self._replicates:
            models = [one for one in self.cells if set(seeds) <= set(self.cells[one])]
            having = {one: {seed: self._metrics[one, seed] for seed in seeds} for one in models}
            counts = {seed: len(self._predictions[self.cells[model][seed].name].labels) for seed in seeds}
            self._replicates[seeds] = resample(having, counts, self._replicate_count)
        return self._replicates[seeds][model][METRICS.index(metric)]

    @cached_property
    def _metrics(self) -> dict[tuple[Model, int], WeightedMetrics]:
        return {
            (model, seed): WeightedMetrics(self._predictions[cell.name])
            for model, by_seed in self.cells.items()
            for seed, cell in by_seed.items()
        }


def panel_key(cell: Cell) -> PanelKey:
    """Of the panel that `cell` belongs to."""
    axes = cell.axes
    return PanelKey(axes.domain, axes.data, axes.partition, axes.aggregation)


def panels(results: Results, replicates: int) -> list[Panel]:
    """Those that have finished cells, in order of their keys."""
    keys = sorted({panel_key(cell) for cell in results.cells if cell.status == "finished"})
    return [Panel(key, results, replicates) for key in keys]
