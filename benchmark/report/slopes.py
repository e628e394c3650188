"""How a metric depends on the exchanged parameters, in points per decade."""

import json
from dataclasses import dataclass

import numpy as np

from benchmark.measurements.intervals import Estimate, holm, over_seeds, shared_by_methods
from benchmark.report.panels import Finding, Panel, PanelKey
from benchmark.report.statistics import METRICS


@dataclass(frozen=True)
class Fit:
    """A line through the methods of one panel and backbone: metric (points) against log10(exchanged parameters)."""

    panel: PanelKey
    backbone: str
    metric: str
    slope: Finding
    """Points per decade: the mean of each seed's own slope. Its intervals are for these very methods."""
    over_methods: Estimate | None
    """The same with an interval over seeds and methods, as if others had been chosen; None for one seed."""
    by_seed: tuple[float, ...]
    """Each seed's own slope, in the order of `seeds`."""
    intercept: float
    """Points at one parameter."""
    smallest: int
    """Exchanged parameters, as is `largest`."""
    largest: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def points(self, parameters: float) -> float:
        """The line's height at so many exchanged parameters."""
        return self.intercept + self.slope.over_seeds.value * float(np.log10(parameters))

    def entry(self, suite: str) -> dict[str, object]:
        """Fields in slopes.json."""
        return {
            "suite": suite,
            "domain": self.panel.domain,
            "data": self.panel.data,
            "partition": self.panel.partition,
            "backbone": self.backbone,
            "metric": self.metric,
            "slope_points_per_decade": self.slope.over_seeds.value,
            "slope_by_seed": list(self.by_seed),
            "interval_over_seeds": _ends(self.slope.over_seeds),
            "interval_over_seeds_and_methods": _ends(self.over_methods),
            "interval_over_seeds_and_images": _ends(self.slope.over_images),
            "methods": list(self.methods),
            "seeds": list(self.seeds),
        }


def fit_all(panels: list[Panel]) -> list[Fit]:
    """The fits of all panels, backbones and metrics, where they are defined."""
    fits = (fit(panel, backbone, metric) for panel in panels for backbone in panel.backbones for metric in METRICS)
    return [one for one in fits if one]


def fit(panel: Panel, backbone: str, metric: str) -> Fit | None:
    """Fits a line by ordinary least squares through the methods that exchange something, in each seed.

    The seeds are those that all of the methods finished. None where fewer than three sizes of method, as two are on a
    line whatever they are, no common seed, or an undefined metric is left.
    """
    models = [model for model in panel.models(backbone) if panel.exchanged[model]]
    seeds = panel.common_seeds(models)
    sizes = [panel.exchanged[model] for model in models]
    if len(set(sizes)) < 3:
        return None
    x = np.log10(sizes)
    centred = x - x.mean()
    contrast = dict(zip(models, (100 * centred / (centred @ centred)).tolist(), strict=True))
    by_seed, slope = panel.by_seed(contrast, metric, seeds), panel.found(contrast, metric, seeds)
    if by_seed is None or slope is None:
        return None
    y = 100 * np.array([panel.by_seed({model: 1.0}, metric, seeds) for model in models])
    shared = shared_by_methods(x, y) if len(seeds) > 1 else None
    return Fit(
        panel=panel.key,
        backbone=backbone,
        metric=metric,
        slope=slope,
        over_methods=over_seeds(by_seed, shared) if shared else None,
        by_seed=tuple(by_seed),
        intercept=float(y.mean() - slope.over_seeds.value * x.mean()),
        smallest=min(sizes),
        largest=max(sizes),
        methods=tuple(model.method for model in models),
        seeds=seeds,
    )


def adjusted(fits: list[Fit]) -> list[float | None]:
    """The p value of each fit's slope, adjusted by Holm: all fits of one metric are one family."""
    found: list[float | None] = [None] * len(fits)
    for metric in METRICS:
        places = [place for place, one in enumerate(fits) if one.metric == metric]
        for place, p in zip(places, holm([fits[place].slope.p for place in places]), strict=True):
            found[place] = p
    return found


def _ends(estimate: Estimate | None) -> tuple[float, float] | None:
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return estimate.low, estimate.high


def main_panels(panels: list[Panel]) -> list[Panel]:
    """One panel for each data and partition, for slopes.json and the overview.

    It is that of the variant ``default``, or else the first by the variant's name.
    """
    chosen: dict[tuple[str, ...], Panel] = {}
    for panel in sorted(panels, key=lambda panel: (panel.key.variant != "default", panel.key.variant)):
        chosen.setdefault(panel.key[:3], panel)
    return list(chosen.values())


def to_json(suite: str, fits: list[Fit]) -> str:
    """The fits of `suite` as a list of JSON objects."""
    return json.dumps([one.entry(suite) for one in fits], indent=1) + "\n"
