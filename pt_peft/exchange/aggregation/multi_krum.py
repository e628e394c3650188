"""Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757)."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, squared_distances
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.tensors import Tensors


class MultiKrum(Rule):
    """The mean of the results that are closest to others.

    The score of one of n results is the sum of the squared distances to its n - f - 2 nearest. The n - f results with
    the lowest scores are averaged, and each counts once.
    """

    robust: ClassVar[bool] = True
    name: Literal["multi_krum"]
    f: int = Field(default=1, ge=1, le=1000)
    """How many sites may lie."""

    @property
    def sites_needed(self) -> int:
        """The paper's condition n > 2 f + 2."""
        return 2 * self.f + 3

    def start(self, before: Tensors) -> Aggregator:
        """Collects the results of a round."""
        return NearestMean(self.f)


class NearestMean(Collected):
    """Averages the n - f results with the lowest scores."""

    def __init__(self, f: int):
        super().__init__()
        self._f = f

    def result(self) -> Tensors:
        """Returns the mean in the tensors' own dtypes. Raises ValueError if nothing was added."""
        results = self.results()
        nearest = len(results) - self._f - 2
        # The first of each sorted row is the result's distance to itself.
        scores = np.sort(squared_distances(results), axis=1)[:, 1 : nearest + 1].sum(axis=1)
        chosen = set(np.argsort(scores, kind="stable")[: len(results) - self._f].tolist())
        mean = RunningMean(by_samples=False)
        for index, result in enumerate(results):
            if index in chosen:
                mean.add(result)
        aggregate = mean.result()
        self.shares = {result.site: mean.shares.get(result.site, 0.0) for result in results}
        return aggregate
