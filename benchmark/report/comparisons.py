"""Initial models against each other, method by method, on the same seeds and test images."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmark.report.panels import Model, Panel
from benchmark.report.statistics import METRICS, Estimate, with_percentiles


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` in points; a method of None stands for all methods together."""

    first: str
    second: str
    method: str | None
    by_metric: dict[str, Estimate | None]
    seeds: tuple[int, ...]


def compare_backbones(panel: Panel) -> list[Difference]:
    """For each pair of backbones a row a method that both finished with a common seed, and one of all those methods."""
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
    by_metric = {}
    for metric in METRICS:
        models = [[Model(backbone, method) for method in methods] for backbone in pair]
        values = [[panel.mean(model, metric, seeds) for model in side] for side in models]
        if any(None in side for side in values):
            by_metric[metric] = None
            continue
        first, second = (np.mean([panel.replicates(model, metric, seeds) for model in side], axis=0) for side in models)
        value = 100 * float(np.mean(values[0]) - np.mean(values[1]))
        by_metric[metric] = with_percentiles(value, 100 * (first - second))
    return Difference(*pair, methods[0] if len(methods) == 1 else None, by_metric, seeds)
