"""How fast a series grows, with the interval of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmark.measurements.intervals import LEVEL, half_width

BINS = 20
"""Means that a series is fitted by: neighbouring samples resemble one another, their means much less."""


class Drift(NamedTuple):
    """A slope, in units of the values an hour, and its 95 % interval."""

    slope: float
    low: float
    high: float


def drift(seconds: Sequence[float], values: Sequence[float]) -> Drift | None:
    """Fits a line to the means of `BINS` equal spans of time.

    Args:
        seconds: times of the samples, growing.
        values: the samples.

    Returns:
        None with fewer samples than `BINS`, which say nothing.
    """
    if len(seconds) < BINS:
        return None
    parts = np.array_split(np.arange(len(seconds)), BINS)
    hours = np.array([np.mean([seconds[one] for one in part]) / 3600 for part in parts])
    means = np.array([np.mean([values[one] for one in part]) for part in parts])
    fit: Any = stats.linregress(hours, means)
    half = float(stats.t.ppf((1 + LEVEL) / 2, BINS - 2) * fit.stderr)
    return Drift(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def mean_drift(drifts: Sequence[Drift]) -> Drift | None:
    """The mean of several processes' slopes, its interval from how they differ; of one, its own. None of none."""
    if len(drifts) < 2:
        return drifts[0] if drifts else None
    slopes = np.array([one.slope for one in drifts])
    half = half_width(float(slopes.std(ddof=1)), len(slopes))
    mean = float(slopes.mean())
    return Drift(mean, mean - half, mean + half)
