"""Compares initial models method by method, on the same seeds and test images."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmark.report.panels import Model, Panel
from benchmark.report.statistics import METRICS, Estimate, with_percentiles


@dataclass(frozen=True)
class Difference:
    """`first` less `second` in points; a method of None stands for all methods together."""

    first: str
    second: str
    method: str | None
    by_metric: dict[str, Estimate | None]
    seeds: tuple[int, ...]


def compare_backbones(panel: Panel) -> list[Difference]:
    """For each pair of backbones one row a method that both finished with a common seed, and one for all of them."""
    rows = []
    for pair in combinations(panel.backbones, 2):
        methods = [model.method for model in panel.models(pair[0]) if Model(pair[1], model.method) in panel.cells]
        seeds = {method: panel.common_seeds([Model(backbone, method) for backbone in pair]) for method in methods}
        methods = [method for method in methods if seeds[method]]
        rows += [_difference(panel, pair, [method], seeds[method]) for method in methods]
        shared = tuple(sorted(set.intersection(*(set(seeds[method]) for method in methods)))) if methods else ()
        if len(methods) > 1 and shared:
            rows.append(_difference(panel, pair, methods, shared))
    return rows


def _difference(panel: Panel, pair: tuple[str, str], methods: list[str], seeds: tuple[int, ...]) -> Difference:
    sides = [[Model(backbone, method) for method in methods] for backbone in pair]
    by_metric = {metric: _estimate(panel, sides, metric, seeds) for metric in METRICS}
    return Difference(*pair, methods[0] if len(methods) == 1 else None, by_metric, seeds)


def _estimate(panel: Panel, sides: list[list[Model]], metric: str, seeds: tuple[int, ...]) -> Estimate | None:
    """First side less second, in points; None where the metric is undefined for a model."""
    means, replicates = [], []
    for models in sides:
        values = [value for model in models if (value := panel.mean(model, metric, seeds)) is not None]
        if len(values) < len(models):
            return None
        means.append(np.mean(values))
        replicates.append(np.mean([panel.replicates(model, metric, seeds) for model in models], axis=0))
    return with_percentiles(100 * float(means[0] - means[1]), 100 * (replicates[0] - replicates[1]))
