"""How a metric depends on the exchanged parameters, in points per decade."""

import json
from dataclasses import dataclass

import numpy as np

from benchmark.report.panels import Panel, PanelKey
from benchmark.report.statistics import METRICS, Estimate, least_squares_slopes, with_percentiles


@dataclass(frozen=True)
class Fit:
    """A line through the methods of one panel and backbone: metric (points) against log10(exchanged parameters)."""

    panel: PanelKey
    backbone: str
    metric: str
    slope: Estimate
    """Points per decade."""
    intercept: float
    """Points at one parameter."""
    smallest: int
    """Exchanged parameters, as is `largest`."""
    largest: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def points(self, parameters: float) -> float:
        """The line's height at so many exchanged parameters."""
        return self.intercept + self.slope.value * float(np.log10(parameters))

    def entry(self, suite: str) -> dict[str, object]:
        """Fields in slopes.json."""
        return {
            "suite": suite,
            "domain": self.panel.domain,
            "data": self.panel.data,
            "partition": self.panel.partition,
            "backbone": self.backbone,
            "metric": self.metric,
            "slope_points_per_decade": self.slope.value,
            "ci_low": self.slope.low,
            "ci_high": self.slope.high,
            "methods": list(self.methods),
            "seeds": list(self.seeds),
        }


def fit_all(panels: list[Panel]) -> list[Fit]:
    """The fits of all panels, backbones and metrics, where they are defined."""
    fits = (fit(panel, backbone, metric) for panel in panels for backbone in panel.backbones for metric in METRICS)
    return [one for one in fits if one]


def fit(panel: Panel, backbone: str, metric: str) -> Fit | None:
    """Fits a line by ordinary least squares through the methods that exchange something.

    A method's value is the mean over the seeds that all of them finished. None where fewer than two sizes of method, no
    common seed, or an undefined metric is left.
    """
    models = [model for model in panel.models(backbone) if panel.exchanged[model]]
    seeds = panel.common_seeds(models)
    values = [value for model in models if (value := panel.mean(model, metric, seeds)) is not None]
    sizes = [panel.exchanged[model] for model in models]
    if len(set(sizes)) < 2 or len(values) < len(models):
        return None
    x, y = np.log10(sizes), 100 * np.array(values)
    slope = float(least_squares_slopes(x, y[:, None])[0])
    replicates = 100 * np.stack([panel.replicates(model, metric, seeds) for model in models])
    return Fit(
        panel=panel.key,
        backbone=backbone,
        metric=metric,
        slope=with_percentiles(slope, least_squares_slopes(x, replicates)),
        intercept=float(y.mean() - slope * x.mean()),
        smallest=min(sizes),
        largest=max(sizes),
        methods=tuple(model.method for model in models),
        seeds=seeds,
    )


def main_panels(panels: list[Panel]) -> list[Panel]:
    """One panel for each data and partition, for slopes.json and the overview.

    It is that of plain averaging, or else the first by the aggregation's name.
    """
    chosen: dict[tuple[str, ...], Panel] = {}
    for panel in sorted(panels, key=lambda panel: (panel.key.aggregation != "mean", panel.key.aggregation)):
        chosen.setdefault(panel.key[:3], panel)
    return list(chosen.values())


def to_json(suite: str, fits: list[Fit]) -> str:
    """The fits of `suite` as a list of JSON objects."""
    return json.dumps([one.entry(suite) for one in fits], indent=1) + "\n"
