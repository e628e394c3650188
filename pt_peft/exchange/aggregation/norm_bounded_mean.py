"""Mean of updates whose norms are bounded (Sun et al. 2019, arXiv:1911.07963)."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, SiteResult
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.tensors import Tensors


class NormBoundedMean(Rule):
    """What a site has changed is scaled down to a Euclidean norm of at most ``bound`` over all its values; then the mean, in
    which every site counts once. Against updates that are scaled up; a bounded lie still counts like a bounded truth.
    """

    robust: ClassVar[bool] = True
    name: Literal["norm_bounded_mean"]
    bound: float | None = Field(default=None, gt=0)
    """null takes the median of the sites' norms in each round, which fewer than half of them cannot move far."""

    @property
    def sites_needed(self) -> int:
        """The median of two norms is half the liar's."""
        return 3 if self.bound is None else 1

    def start(self, before: Tensors) -> Aggregator:
        return BoundedMean(self.bound, before)


class BoundedMean(Collected):
    def __init__(self, bound: float | None, before: Tensors):
        super().__init__()
        self._bound = bound
        self._before = before

    def result(self) -> Tensors:
        results = self.results()
        norms = [self._norm(result) for result in results]
        bound = float(np.median(norms)) if self._bound is None else self._bound
        mean = RunningMean(by_samples=False)
        for result, norm in zip(results, norms, strict=True):
            scale = min(1.0, bound / norm) if norm else 1.0
            tensors = {key: self._before[key] + scale * self._change(result, key) for key in result.tensors}
            mean.add(SiteResult(result.site, tensors, 1))
        return {key: value.astype(self._before[key].dtype) for key, value in mean.result().items()}

    def _change(self, result: SiteResult, key: str) -> np.ndarray:
        return result.tensors[key].astype(np.float64) - self._before[key]

    def _norm(self, result: SiteResult) -> float:
        return float(np.sqrt(sum(np.square(self._change(result, key)).sum() for key in result.tensors)))
