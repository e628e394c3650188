"""What the LoRA rules share: they average everything, then replace the means of each layer's pair of factors."""

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from pt_peft.exchange.aggregation.base import Collected, Rule, stacked
from pt_peft.exchange.aggregation.lora_factors import Factors, weights_of
from pt_peft.exchange.lora_pairs import Pair, pairs
from pt_peft.exchange.tensors import Array, Tensors

Combine = Callable[[Pair, Factors], Tensors]
"""Computes from the sites' factors of one pair the tensors, by key, that replace or join the means."""


class LoraRule(Rule):
    """A rule that averages all tensors but LoRA's factors as `Mean` does."""

    refactors: ClassVar[bool] = True

    weighting: Literal["samples", "uniform"] = "samples"
    """A site's weight: the number of its training images, or 1."""

    def weight(self, num_samples: int) -> int:
        """`num_samples` for ``samples``, else 1."""
        return num_samples if self.weighting == "samples" else 1


class PairwiseMean(Collected):
    """Averages all results in float64, then lets `combine` replace the means of each pair."""

    def __init__(self, by_samples: bool, before: Tensors, combine: Combine):
        super().__init__()
        self._by_samples = by_samples
        self._before = before
        self._combine = combine

    def result(self) -> Tensors:
        """Returns the aggregate in the dtypes of `before`. Raises ValueError if nothing was added."""
        results = self.results()
        weights = weights_of(results, self._by_samples)
        self.shares = {result.site: float(weight) for result, weight in zip(results, weights, strict=True)}
        mean: Tensors = {}
        for key in results[0].tensors:
            mean[key] = self._stored(key, np.tensordot(weights, stacked(results, key), axes=1))
        for pair in pairs(mean):
            combined = self._combine(pair, Factors.of(results, pair, weights))
            mean |= {key: self._stored(key, value) for key, value in combined.items()}
        return mean

    def _stored(self, key: str, value: Array) -> Array:
        """In the dtype of `before`, at once: all layers' residuals in float64 are the largest thing here."""
        return value.astype(self._before[key].dtype)
