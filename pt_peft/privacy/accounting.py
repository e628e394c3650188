r"""The epsilon that Gaussian noise on Poisson-sampled sums costs. Imports no torch.

The Rényi divergence of one step with sampling rate q and noise multiplier s (Mironov et al. 2019, arXiv:1908.10530) is

    R(a) = log E[((1 - q) + q exp((2 z - 1) / (2 s²)))^a] / (a - 1),    z ~ N(0, s²)

computed here by the trapezoidal rule, which converges exponentially for such integrands, so that orders a need not be
integers. Steps add up, and (Canonne et al. 2020, arXiv:2004.00010, proposition 12)

    epsilon = min over a of  R(a) + log((a - 1) / a) - (log delta + log a) / (a - 1)

Without sampling T steps are one Gaussian of sensitivity over deviation m = sqrt(T) / s, for which (Balle & Wang 2018,
arXiv:1805.06530)

    delta = Phi(m / 2 - epsilon / m) - exp(epsilon) Phi(-m / 2 - epsilon / m)

is exact. Neighbours are two data sets, one of which has one image (or one site's update) replaced by nothing; the
number of images is known to all.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Array
from pt_peft.schema import Strict

ORDERS = (*(1 + step / 10 for step in range(1, 100)), *range(11, 65), *(2**power for power in range(7, 11)))
"""Rényi orders. The few large ones are for much noise and few steps."""


class Steps(Strict):
    """A number of equal steps of one mechanism."""

    rate: Annotated[float, Field(ge=1e-12, le=1)]
    """Probability with which each image is in a step's batch; 1 without sampling."""
    noise_multiplier: Annotated[float, Field(ge=1e-3, le=1e6)]
    """Standard deviation of the noise over the sensitivity of the sum."""
    count: Annotated[int, Field(ge=0, le=10**12)]
    """Number of steps."""


Accountant = Literal["rdp", "prv"]
"""How costs are bounded: by Rényi divergences, or by privacy loss variables."""


def epsilon(
    steps: Sequence[Steps], delta: float, accountant: Accountant = "rdp", orders: Sequence[float] = ORDERS
) -> float:
    """An upper bound of what all of `steps` cost together at `delta`.

    It is exact, with either accountant, if no step samples.

    Raises:
        UserError: if the accountant is ``prv`` and Opacus is not installed, or cannot compute it.
    """
    taken = [one for one in steps if one.count]
    if not taken:
        return 0.0
    if all(one.rate == 1 for one in taken):
        return _gaussian_epsilon(math.sqrt(sum(one.count / one.noise_multiplier**2 for one in taken)), delta)
    if accountant == "prv":
        return _prv_epsilon(taken, delta)
    totals = sum(one.count * _divergences(one.rate, one.noise_multiplier, tuple(orders)) for one in taken)
    order = np.array(orders, dtype=np.float64)
    bounds = totals + np.log1p(-1 / order) - (math.log(delta) + np.log(order)) / (order - 1)
    return max(0.0, float(bounds.min()))


@lru_cache(maxsize=64)
def _divergences(rate: float, noise_multiplier: float, orders: tuple[float, ...]) -> Array:
    """R(a) for each order, float64 (orders,)."""
    return np.array([_divergence(rate, noise_multiplier, order) for order in orders])


def _divergence(rate: float, noise: float, order: float) -> float:
    if rate == 1:
        return order / (2 * noise**2)
    # The mass is within ten deviations of 0 and of the order: the rest is below 1e-22 of it.
    z = np.arange(-12 * noise, order + 12 * noise, noise / 40)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    logs = order * ratio - z**2 / (2 * noise**2)
    greatest = logs.max()
    log_mean = greatest + math.log(np.exp(logs - greatest).sum() / 40) - math.log(2 * math.pi) / 2
    return max(0.0, log_mean / (order - 1))


def _gaussian_epsilon(ratio: float, delta: float) -> float:
    """Epsilon of one Gaussian, by bisection. `ratio` is the sensitivity over the noise's standard deviation."""

    def delta_at(value: float) -> float:
        below = math.exp(_log_normal(ratio / 2 - value / ratio))
        return below - math.exp(min(0.0, value + _log_normal(-ratio / 2 - value / ratio)))

    if delta_at(0.0) <= delta:
        return 0.0
    low, high = 0.0, ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1 / delta))  # the bound by Rényi divergences
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def _log_normal(x: float) -> float:
    """The logarithm of Phi(x)."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -(x**2) / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4)


_ACCOUNTANT = reasons.ExperimentInvalid(field="privacy.sample.accountant")


def _prv_epsilon(steps: Sequence[Steps], delta: float) -> float:
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        raise UserError(
            f"experiment: field 'privacy.sample.accountant' is 'prv', which needs Opacus at the sites ({error}): "
            "pip install opacus, or 'rdp'."
        ).told_as(_ACCOUNTANT) from None
    counts: dict[tuple[float, float], int] = {}
    for one in steps:
        counts[one.noise_multiplier, one.rate] = counts.get((one.noise_multiplier, one.rate), 0) + one.count
    accountant = PRVAccountant()
    accountant.history = [(*key, count) for key, count in counts.items()]
    try:
        return float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"experiment: field 'privacy.sample.accountant' is 'prv', which cannot tell what is spent at delta "
            f"{delta:g} ({' '.join(str(error).split())}); 'rdp' would be right."
        ).told_as(_ACCOUNTANT) from None
