"""Coordinate-wise median (Yin et al. 2018, arXiv:1803.01498)."""

from typing import ClassVar, Literal

import numpy as np

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, stacked
from pt_peft.exchange.tensors import Tensors


class Median(Rule):
    """The median of each value over the sites.

    Every site counts once, because a site that lies may also lie about its number of images.
    """

    robust: ClassVar[bool] = True
    name: Literal["median"] = "median"

    @property
    def sites_needed(self) -> int:
        """3: the median of two results is their mean."""
        return 3

    def start(self, before: Tensors) -> Aggregator:
        """Collects the results of a round."""
        return CoordinateMedian()


class CoordinateMedian(Collected):
    """Takes the median, which stays between honest values as long as fewer than half of the sites lie."""

    def result(self) -> Tensors:
        """Returns the median in the tensors' own dtypes. Raises ValueError if nothing was added."""
        results = self.results()
        return {
            key: np.median(stacked(results, key), axis=0).astype(value.dtype)
            for key, value in results[0].tensors.items()
        }
