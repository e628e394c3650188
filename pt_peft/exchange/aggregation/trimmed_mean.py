"""Coordinate-wise trimmed mean (Yin et al. 2018, arXiv:1803.01498)."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, stacked
from pt_peft.exchange.tensors import Tensors


class TrimmedMean(Rule):
    """The mean of each value over the sites without its f largest and f smallest. Every site counts once."""

    robust: ClassVar[bool] = True
    name: Literal["trimmed_mean"]
    f: int = Field(default=1, ge=1, le=1000)
    """How many sites may lie."""

    @property
    def sites_needed(self) -> int:
        """2 f + 1, so that one value is left."""
        return 2 * self.f + 1

    def start(self, before: Tensors) -> Aggregator:
        """Collects the results of a round."""
        return CoordinateTrimmedMean(self.f)


class CoordinateTrimmedMean(Collected):
    """Sorts each value over the sites and averages the middle ones."""

    def __init__(self, f: int):
        super().__init__()
        self._f = f

    def result(self) -> Tensors:
        """Returns the mean in the tensors' own dtypes. Raises ValueError if nothing was added."""
        results = self.results()
        kept = slice(self._f, len(results) - self._f)
        return {
            key: np.sort(stacked(results, key), axis=0)[kept].mean(axis=0).astype(value.dtype)
            for key, value in results[0].tensors.items()
        }
