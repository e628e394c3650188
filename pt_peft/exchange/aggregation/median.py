"""Coordinate-wise median (Yin et al. 2018, arXiv:1803.01498)."""

from typing import ClassVar, Literal

import numpy as np

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, stacked
from pt_peft.exchange.tensors import Tensors


class Median(Rule):
    """The median of each value over the sites, each of which counts once: their numbers of images are not taken on trust."""

    robust: ClassVar[bool] = True
    name: Literal["median"] = "median"

    @property
    def sites_needed(self) -> int:
        """Of two results it is the mean."""
        return 3

    def start(self, before: Tensors) -> Aggregator:
        return CoordinateMedian()


class CoordinateMedian(Collected):
    """Stays between honest values as long as fewer than half of the sites lie."""

    def result(self) -> Tensors:
        results = self.results()
        return {
            key: np.median(stacked(results, key), axis=0).astype(value.dtype)
            for key, value in results[0].tensors.items()
        }
