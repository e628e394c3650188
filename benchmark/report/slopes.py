"""How a metric depends on the exchanged parameters: points for each factor of ten."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from benchmark.report.panels import Panel, PanelKey
from benchmark.report.statistics import METRICS, Estimate, least_squares_slope, with_percentiles
from pt_peft.errors import UserError
from pt_peft.files import write_atomically
from pt_peft.schema import read_json

KEY = ("suite", "domain", "data", "partition", "backbone", "metric")


@dataclass(frozen=True)
class Fit:
    """A line through the methods of one panel and backbone: metric (points) against log10(exchanged parameters).

    slope: points per decade; intercept: points at one parameter; smallest and largest: exchanged parameters.
    """

    panel: PanelKey
    backbone: str
    metric: str
    slope: Estimate
    intercept: float
    smallest: int
    largest: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def points(self, parameters: float) -> float:
        """The line's height."""
        return self.intercept + self.slope.value * float(np.log10(parameters))

    def entry(self, suite: str) -> dict:
        """As in slopes.json."""
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
    """Every panel's, backbone's and metric's fit that is defined."""
    fits = (fit(panel, backbone, metric) for panel in panels for backbone in panel.backbones for metric in METRICS)
    return [one for one in fits if one]


def fit(panel: Panel, backbone: str, metric: str) -> Fit | None:
    """Ordinary least squares over the methods that exchange something, of the mean over the seeds that all of them finished.

    None where fewer than two sizes of method, no common seed, or no value is left.
    """
    models = [model for model in panel.models(backbone) if panel.exchanged[model]]
    seeds = panel.common_seeds(models)
    values = [panel.mean(model, metric, seeds) for model in models]
    sizes = [panel.exchanged[model] for model in models]
    if len(set(sizes)) < 2 or None in values:
        return None
    x, y = np.log10(sizes), 100 * np.array(values)
    slope = float(least_squares_slope(x, y))
    replicates = 100 * np.stack([panel.replicates(model, metric, seeds) for model in models])
    return Fit(
        panel=panel.key,
        backbone=backbone,
        metric=metric,
        slope=with_percentiles(slope, least_squares_slope(x, replicates)),
        intercept=float(y.mean() - slope * x.mean()),
        smallest=min(sizes),
        largest=max(sizes),
        methods=tuple(model.method for model in models),
        seeds=seeds,
    )


def main_panels(panels: list[Panel]) -> list[Panel]:
    """Those that go into slopes.json and the overview: of each data and partition plain averaging's, or else the first's by
    name.
    """
    chosen: dict[tuple[str, ...], Panel] = {}
    for panel in sorted(panels, key=lambda panel: (panel.key.aggregation != "mean", panel.key.aggregation)):
        chosen.setdefault(panel.key[:3], panel)
    return list(chosen.values())


def read_entries(path: Path) -> list[dict]:
    """Those of a slopes.json that may not be there yet. Raises UserError if it is damaged or its folder is not there."""
    if not path.resolve().parent.is_dir():
        raise UserError(f"{path}: {path.resolve().parent} is not a folder.")
    if not path.exists():
        return []
    entries = read_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and set(KEY) <= set(entry) for entry in entries
    ):
        raise UserError(f"{path}: is not a list of fits with {', '.join(KEY)}; remove it to start anew.")
    return entries


def merge(path: Path, suite: str, fits: list[Fit]) -> None:
    """Puts `fits` into slopes.json in place of all of the same suite's; those of others stay.

    Raises:
        UserError: if the file is damaged.
    """
    with FileLock(path.with_suffix(".lock")):
        entries = [entry for entry in read_entries(path) if entry["suite"] != suite]
        entries += [one.entry(suite) for one in fits]
        entries.sort(key=lambda entry: [str(entry[field]) for field in KEY])
        write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())
