"""Compares initial models method by method, on the same seeds and test images."""

from dataclasses import dataclass
from itertools import combinations

from benchmark.measurements.intervals import holm
from benchmark.report.panels import Finding, Model, Panel
from benchmark.report.statistics import METRICS


@dataclass(frozen=True)
class Difference:
    """`first` less `second` in points; a method of None stands for all methods together."""

    first: str
    second: str
    method: str | None
    by_metric: dict[str, Finding | None]
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


def adjusted(differences: list[Difference], metric: str) -> list[float | None]:
    """The p value of each difference of one metric, adjusted by Holm: all of a panel's are one family."""
    return holm([found.p if (found := one.by_metric[metric]) else None for one in differences])


def _difference(panel: Panel, pair: tuple[str, str], methods: list[str], seeds: tuple[int, ...]) -> Difference:
    points = 100 / len(methods)
    contrast = {
        Model(backbone, method): sign * points
        for backbone, sign in zip(pair, (1, -1), strict=True)
        for method in methods
    }
    by_metric = {metric: panel.found(contrast, metric, seeds) for metric in METRICS}
    return Difference(*pair, methods[0] if len(methods) == 1 else None, by_metric, seeds)
