"""Groups of cells that can be compared."""

from collections import defaultdict
from functools import cached_property
from typing import NamedTuple

import numpy as np

from benchmark.report.results import Results
from benchmark.report.statistics import METRICS, Estimate, Floats, WeightedMetrics, over_seeds, resample
from benchmark.sweep.records import CellRecord, metric_of


class PanelKey(NamedTuple):
    """Domain, data, partition and aggregation."""

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
    """All finished cells of one data, partition and aggregation, tested on the same images.

    Attributes:
        key: what the cells have in common.
        cells: by `Model`, then seed; models in order of backbone and exchanged parameters.
        exchanged: values that a site sends in a round, head included, by `Model`.
    """

    def __init__(self, key: PanelKey, results: Results, replicates: int) -> None:
        self.key = key
        self._replicate_count = replicates
        cells: dict[Model, dict[int, CellRecord]] = defaultdict(dict)
        for cell in results.cells:
            if panel_key(cell) == key:
                cells[Model(cell.axes.backbone, cell.axes.method)][cell.axes.seed] = cell
        sizes = {model: max(cell.exchanged_parameters for cell in by_seed.values()) for model, by_seed in cells.items()}
        order = sorted(cells, key=lambda model: (model.backbone, sizes[model], model.method))
        self.cells = {model: dict(sorted(cells[model].items())) for model in order}
        self.exchanged = {model: sizes[model] for model in order}
        self._replicates: dict[tuple[int, ...], dict[Model, Floats]] = {}

    @property
    def backbones(self) -> list[str]:
        """Names in alphabetical order."""
        return list(dict.fromkeys(model.backbone for model in self.cells))

    def models(self, backbone: str) -> list[Model]:
        """Models of `backbone` in order of exchanged parameters."""
        return [model for model in self.cells if model.backbone == backbone]

    def tested(self, model: Model, metric: str) -> dict[int, float | None]:
        """Pooled test metric by seed."""
        return {seed: metric_of(cell.final.test.pooled, metric) for seed, cell in self.cells[model].items()}

    def estimate(self, model: Model, metric: str) -> Estimate | None:
        """Pooled test metric over seeds; None where it is undefined for one."""
        values = [value for value in self.tested(model, metric).values() if value is not None]
        return over_seeds(values) if len(values) == len(self.cells[model]) else None

    def common_seeds(self, models: list[Model]) -> tuple[int, ...]:
        """Seeds that all `models` finished."""
        return tuple(sorted(set.intersection(*(set(self.cells[model]) for model in models)))) if models else ()

    def mean(self, model: Model, metric: str, seeds: tuple[int, ...]) -> float | None:
        """Mean pooled test metric over `seeds`; None where it is undefined for one, or without seeds."""
        tested = self.tested(model, metric)
        values = [value for seed in seeds if (value := tested[seed]) is not None]
        return float(np.mean(values)) if values and len(values) == len(seeds) else None

    def replicates(self, model: Model, metric: str, seeds: tuple[int, ...]) -> Floats:
        """Bootstrap replicates float64 (R,) of `mean`, paired with those of the other models for the same `seeds`."""
        if seeds not in self._replicates:
            models = [one for one in self.cells if set(seeds) <= set(self.cells[one])]
            having = {one: {seed: self._metrics[one, seed] for seed in seeds} for one in models}
            counts = {seed: len(self.cells[model][seed].predictions.labels) for seed in seeds}
            self._replicates[seeds] = resample(having, counts, self._replicate_count)
        return self._replicates[seeds][model][METRICS.index(metric)]

    @cached_property
    def _metrics(self) -> dict[tuple[Model, int], WeightedMetrics]:
        return {
            (model, seed): WeightedMetrics(cell.predictions.logits, cell.predictions.labels)
            for model, by_seed in self.cells.items()
            for seed, cell in by_seed.items()
        }


def panel_key(cell: CellRecord) -> PanelKey:
    """Key of the panel that `cell` belongs to."""
    axes = cell.axes
    return PanelKey(axes.domain, axes.data, axes.partition, axes.aggregation)


def panels(results: Results, replicates: int) -> list[Panel]:
    """The panels that have finished cells, in order of their keys."""
    keys = sorted({panel_key(cell) for cell in results.cells})
    return [Panel(key, results, replicates) for key in keys]
