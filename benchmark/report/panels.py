"""Groups of cells that can be compared."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from benchmark.measurements.intervals import Estimate, Floats, Shared, over_seeds, p_value, shared_by_images
from benchmark.oracle.predictions import Groups
from benchmark.report.results import Results
from benchmark.report.statistics import FEWEST_SEEDS, METRICS, WeightedMetrics, clusters_of, resample
from benchmark.sweep.records import CellRecord, metric_of


class PanelKey(NamedTuple):
    """Domain, data, partition and variant."""

    domain: str
    data: str
    partition: str
    variant: str

    def __str__(self) -> str:
        return f"{self.data} ({self.domain}), {self.partition}, {self.variant}"


class Model(NamedTuple):
    """A row of a panel."""

    backbone: str
    method: str


Contrast = Mapping[Model, float]
"""A weighted sum of models' metrics, by its weights: a model's own, a difference, a slope."""


@dataclass(frozen=True)
class Finding:
    """A contrast with its intervals."""

    over_seeds: Estimate
    """Over seeds or folds."""
    over_images: Estimate | None
    """Over them and over test images; None over fewer than `FEWEST_SEEDS`, and where the images' groups are unknown."""
    p: float | None
    """Two-sided p that it is zero, of the t test over seeds; None for one seed."""


class Panel:
    """All finished cells of one data, partition and variant, tested on the same images.

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
    def units(self) -> str:
        """What its runs differ in: ``folds`` or ``seeds``."""
        return "folds" if any(cell.folds for cells in self.cells.values() for cell in cells.values()) else "seeds"

    @property
    def iid(self) -> bool | None:
        """Whether its images were dealt to the sites at random; None where nothing was dealt."""
        kind = next(_partition(cell) for cells in self.cells.values() for cell in cells.values())
        return None if kind in (None, "none") else kind == "iid"

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

    def by_seed(self, contrast: Contrast, metric: str, seeds: tuple[int, ...]) -> list[float] | None:
        """The contrast of pooled test metrics in each of the `seeds`; None where it is undefined in one, or without."""
        tested = {model: self.tested(model, metric) for model in contrast}
        terms = [
            [weight * value for model, weight in contrast.items() if (value := tested[model][seed]) is not None]
            for seed in seeds
        ]
        if not terms or any(len(one) < len(contrast) for one in terms):
            return None
        return [math.fsum(one) for one in terms]  # equal models differ by exactly nothing

    def found(self, contrast: Contrast, metric: str, seeds: tuple[int, ...]) -> Finding | None:
        """The mean over `seeds` of a contrast of pooled test metrics; None where it is undefined."""
        values = self.by_seed(contrast, metric, seeds)
        if values is None:
            return None
        shared = self._shared_by_images(contrast, metric, seeds)
        return Finding(over_seeds(values), over_seeds(values, shared) if shared else None, p_value(values))

    def _shared_by_images(self, contrast: Contrast, metric: str, seeds: tuple[int, ...]) -> Shared | None:
        """What the `seeds` share as they were tested on the same images; None if no bootstrap is to be shown."""
        groups = self._groups(seeds)
        if len(seeds) < FEWEST_SEEDS or groups is None:
            return None
        clusters, meet = clusters_of(groups)
        if not meet:  # folds: each cluster is tested once, and the spread over folds has its part
            return Shared(0.0, clusters - 1)
        replicates, row = self._replicates_of(groups), METRICS.index(metric)
        terms = [weight * replicates[model][row] for model, weight in contrast.items()]
        return shared_by_images(np.sum(terms, axis=0), clusters)

    def share_images(self, seeds: tuple[int, ...]) -> bool:
        """Whether any image, lesion or patient is known to be tested in more than one of the `seeds`."""
        groups = self._groups(seeds)
        return groups is not None and clusters_of(groups)[1]

    def _groups(self, seeds: tuple[int, ...]) -> dict[int, Groups] | None:
        """By seed, the group of each test image; None if one is unknown."""
        found: dict[int, Groups] = {}
        for seed in seeds:
            cell = next(cells[seed] for cells in self.cells.values() if seed in cells)
            if cell.predictions.group is None:
                return None
            found[seed] = cell.predictions.group
        return found

    def _replicates_of(self, groups: Mapping[int, Groups]) -> dict[Model, Floats]:
        """See `resample`, of all models that have all seeds of `groups`."""
        seeds = tuple(groups)
        if seeds not in self._replicates:
            models = [one for one in self.cells if set(seeds) <= set(self.cells[one])]
            having = {one: {seed: self._metrics[one, seed] for seed in seeds} for one in models}
            self._replicates[seeds] = resample(having, groups, self._replicate_count)
        return self._replicates[seeds]

    @cached_property
    def _metrics(self) -> dict[tuple[Model, int], WeightedMetrics]:
        return {
            (model, seed): WeightedMetrics(cell.predictions.logits, cell.predictions.labels)
            for model, by_seed in self.cells.items()
            for seed, cell in by_seed.items()
        }


def _partition(cell: CellRecord) -> JsonValue:
    """Its kind; None where the record does not say."""
    partition = cell.experiment.get("partition")
    return partition.get("kind") if isinstance(partition, dict) else None


def panel_key(cell: CellRecord) -> PanelKey:
    """Key of the panel that `cell` belongs to."""
    axes = cell.axes
    return PanelKey(axes.domain, axes.data, axes.partition, axes.variant)


def panels(results: Results, replicates: int) -> list[Panel]:
    """The panels that have finished cells, in order of their keys."""
    keys = sorted({panel_key(cell) for cell in results.cells})
    return [Panel(key, results, replicates) for key in keys]
