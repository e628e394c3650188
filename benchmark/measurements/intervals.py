r"""Intervals and tests over seeds, or over folds, each of which is a run with a seed of its own.

The mean of one value a seed has the t interval of Student (1908). It covers all that differs between seeds: training,
partition, and with folds the test images. What seeds share does not show in their spread. Where its part of the
variance of the mean is known, it is added:

    V = s² / K + v,    interval: mean ± t(0.975, nu) sqrt(V),    nu = V² / ((s² / K)² / (K - 1) + v² / n)

with s² the variance of the K values, and v known with n degrees of freedom (Satterthwaite 1946); such an interval is at
least as wide as that over seeds alone. Two things are shared: test images, and the methods that a slope goes through.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Floats = npt.NDArray[np.floating]
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval; `low` and `high` are None where only one value is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Shared:
    """A part of the variance of a mean over seeds that all of them share."""

    variance: float
    """v, not negative."""
    freedom: float
    """n, degrees of freedom."""


def over_seeds(values: Sequence[float], shared: Shared | None = None) -> Estimate:
    """The mean of one value a seed with its t interval; two values or more have one.

    Args:
        values: one a seed.
        shared: what the interval covers besides.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean)
    own = float(np.var(values, ddof=1)) / len(values)
    half = _half(own, len(values) - 1)
    if shared and shared.variance:
        variance = own + shared.variance
        freedom = variance**2 / (own**2 / (len(values) - 1) + shared.variance**2 / shared.freedom)
        half = max(half, _half(variance, freedom))  # what covers more is not narrower
    return Estimate(mean, mean - half, mean + half)


def _half(variance: float, freedom: float) -> float:
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5


def paired(these: Mapping[int, float | None], those: Mapping[int, float | None]) -> Estimate | None:
    """The mean difference in points over the seeds that both have; None without any, or where one is undefined."""
    pairs = [(these[seed], those[seed]) for seed in sorted(these.keys() & those.keys())]
    known = [100 * (one - other) for one, other in pairs if one is not None and other is not None]
    return over_seeds(known) if known and len(known) == len(pairs) else None


def p_value(values: Sequence[float]) -> float | None:
    """Two-sided p of the t test that the mean of one value a seed is zero; None for a single one."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
    if not error:
        return float(mean == 0)
    return float(2 * stdtr(len(values) - 1, -abs(mean) / error))


def p_above(values: Sequence[float], bound: float) -> float:
    """One-sided p of the t test that the mean of one value a seed, of two or more, is not above `bound`."""
    mean, error = float(np.mean(values)) - bound, float(np.std(values, ddof=1) / len(values) ** 0.5)
    if not error:
        return float(mean <= 0)
    return float(stdtr(len(values) - 1, -mean / error))


def p_of_several(p_values: Sequence[float], several: int) -> float:
    """The p value of the hypothesis that fewer than `several` of the tests' are false, however these depend on another.

    With M sorted p values it is (M - u + 1) p_(u), of u = `several` (Benjamini and Heller 2008).
    """
    return min(1.0, (len(p_values) - several + 1) * sorted(p_values)[several - 1])


def half_width(spread: float, seeds: int, tail: float = (1 - LEVEL) / 2) -> float:
    """Half the t interval of a mean of so many values with the standard deviation `spread`, and `tail` on each side."""
    return float(stdtrit(seeds - 1, 1 - tail)) * spread / seeds**0.5


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts the p values of one family so that it has one false finding or more in at most 5 % (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and is at least as large as those before it. None stays None and
    does not count.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted


def slopes_of(x: Floats, y: Floats) -> Floats:
    """Slopes (K,…) of the ordinary least squares lines through `x` (M,) and `y` (M,K,…)."""
    centred = x - x.mean()
    return np.tensordot(centred, y, axes=1) / (centred @ centred)


def shared_by_methods(x: Floats, y: Floats) -> Shared | None:
    """What K seeds' slopes share because they go through the same M methods, as if methods were drawn at random.

    A method lies off the line by the same in every seed. Its part of the variance of the mean slope is that of the
    least squares slope through the means over seeds, less what varies from seed to seed and the slopes' own spread has:

        v = max(0, MS_methods - MS_rest) / (K sum (x - mean x)²)

    with the mean squares of the deviations from each seed's own line: of methods (n = M - 2), and of the rest.

    Args:
        x: (M,).
        y: (M,K), K of 2 or more.

    Returns:
        None for fewer than three methods, through which every line goes.
    """
    methods, seeds = y.shape
    if methods < 3:
        return None
    centred = x - x.mean()
    off = y - y.mean(axis=0) - np.outer(centred, slopes_of(x, y))
    of_method = off.mean(axis=1)
    between = seeds * float(of_method @ of_method) / (methods - 2)
    rest = float(np.square(off - of_method[:, None]).sum()) / ((methods - 2) * (seeds - 1))
    return Shared(max(0.0, between - rest) / (seeds * float(centred @ centred)), methods - 2)


def shared_by_images(replicates: Floats, clusters: int) -> Shared:
    """What K seeds' values share because they were tested on the same images: the mean covariance of two seeds.

    The variance of a mean of values that covary is s² / K + their mean covariance. It is zero for folds, of which each
    has other images.

    Args:
        replicates: (K,R), the values under R draws of the clusters of images, the same draws for every seed.
        clusters: how many there are.
    """
    known = replicates[:, ~np.isnan(replicates).any(axis=0)]
    seeds = len(known)
    covariances = np.cov(known)
    mean = float((covariances.sum() - np.trace(covariances)) / (seeds * (seeds - 1)))
    return Shared(max(0.0, mean), clusters - 1)
