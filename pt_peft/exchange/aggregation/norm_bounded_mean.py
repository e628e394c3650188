"""The mean of changes whose norms are bounded (Sun et al. 2019, arXiv:1911.07963)."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, SiteResult
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.tensors import Array, Tensors


class NormBoundedMean(Rule):
    """The mean of the sites' changes, each scaled down to a Euclidean norm of at most ``bound`` over all its values.

    Every site counts once. This defends against changes that are scaled up; a bounded lie still counts like a bounded
    truth.
    """

    robust: ClassVar[bool] = True
    name: Literal["norm_bounded_mean"]
    bound: float | None = Field(default=None, gt=0)
    """Greatest norm, above 0; null takes the median of the sites' norms in each round, which fewer than half of them
    cannot move far."""

    @property
    def sites_needed(self) -> int:
        """3 without a fixed bound: of two norms one liar moves the median."""
        return 3 if self.bound is None else 1

    def start(self, before: Tensors) -> Aggregator:
        """Collects the results of a round and bounds their distances from `before`."""
        return BoundedMean(self.bound, before)


class BoundedMean(Collected):
    """Bounds the sites' changes of `before`, then averages."""

    def __init__(self, bound: float | None, before: Tensors):
        super().__init__()
        self._bound = bound
        self._before = before

    def result(self) -> Tensors:
        """Returns the mean in the dtypes of `before`. Raises ValueError if nothing was added."""
        results = self.results()
        norms = [self._norm(result) for result in results]
        bound = float(np.median(norms)) if self._bound is None else self._bound
        mean = RunningMean(by_samples=False)
        for result, norm in zip(results, norms, strict=True):
            scale = min(1.0, bound / norm) if norm else 1.0
            tensors = {key: self._before[key] + scale * self._change(result, key) for key in result.tensors}
            mean.add(SiteResult(result.site, tensors, 1))
        aggregate = {key: value.astype(self._before[key].dtype) for key, value in mean.result().items()}
        self.shares = mean.shares
        return aggregate

    def _change(self, result: SiteResult, key: str) -> Array:
        return result.tensors[key].astype(np.float64) - self._before[key]

    def _norm(self, result: SiteResult) -> float:
        return float(np.sqrt(sum(np.square(self._change(result, key)).sum() for key in result.tensors)))
