"""Means over sites: FedAvg's (McMahan et al. 2017, arXiv:1602.05629) and two other weightings."""

from typing import Any, Literal

import numpy as np

from pt_peft.exchange.aggregation.base import Aggregator, Collected, Rule, SiteResult, stacked
from pt_peft.exchange.tensors import Tensors


class Mean(Rule):
    """The weighted mean sum_k w_k x_k / sum_k w_k over the sites' tensors x_k."""

    name: Literal["mean"] = "mean"
    weighting: Literal["samples", "class_samples", "uniform", "inverse_variance"] = "samples"
    """w_k: ``samples`` the number of training images; ``class_samples`` the same, but in each row of the classifier the
    number of those of its class, which sites have to send (`ClassWeightedMean`); ``uniform`` 1; ``inverse_variance``
    1 / s_k², where s_k² is the mean square of the site's deviation from the unweighted mean over all its values, so
    that a site far from the others weighs less (as in a meta-analysis with known variances)."""

    def weight(self, num_samples: int) -> int:
        """`num_samples` for ``samples`` and ``class_samples``, else 1."""
        return num_samples if self.weighting in ("samples", "class_samples") else 1

    def start(self, before: Tensors) -> Aggregator:
        """Sums results as they arrive; ``inverse_variance`` keeps them all.

        A server that knows how many images of each class the sites have starts a `ClassWeightedMean` itself.
        """
        return (
            InverseVarianceMean() if self.weighting == "inverse_variance" else RunningMean(self.weighting != "uniform")
        )


class RunningMean:
    """Adds up results in float64, which takes one copy of the exchanged tensors for any number of sites.

    A float32 times an integer below 2**29 is exact in float64: the order in which results arrive moves the sum by parts
    in 2**53, far below what the float32 mean shows.
    """

    def __init__(self, by_samples: bool) -> None:
        self._by_samples = by_samples
        self._sums: Tensors = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._weights: dict[str, int] = {}
        self.shares: dict[str, float] = {}

    def add(self, result: SiteResult) -> None:
        """Adds one site's result."""
        weight = result.num_samples if self._by_samples else 1
        for key, value in result.tensors.items():
            term = value.astype(np.float64) * weight
            if key in self._sums:
                self._sums[key] += term
            else:
                self._sums[key], self._dtypes[key] = term, value.dtype
        self._weights[result.site] = weight

    def result(self) -> Tensors:
        """Returns the mean in the tensors' own dtypes. Raises ValueError if nothing was added."""
        if not self._weights:
            raise ValueError("no results to aggregate")
        total = sum(self._weights.values())
        self.shares = {site: weight / total for site, weight in self._weights.items()}
        return {key: (value / total).astype(self._dtypes[key]) for key, value in self._sums.items()}


class InverseVarianceMean(Collected):
    """Weighs sites by their distance from the unweighted mean, in two passes over all results.

    A site that equals the mean to the last bit would weigh infinitely much: variances are at least a millionth of their
    mean.
    """

    def result(self) -> Tensors:
        """Returns the mean in the tensors' own dtypes. Raises ValueError if nothing was added."""
        results = self.results()
        squares, count = np.zeros(len(results)), 0
        for key in results[0].tensors:
            values = stacked(results, key).reshape(len(results), -1)
            squares += np.square(values - values.mean(axis=0)).sum(axis=1)
            count += values.shape[1]
        variances = squares / max(count, 1)
        lowest = variances.mean() * 1e-6
        weights = 1 / np.maximum(variances, lowest) if lowest else np.ones(len(results))
        weights /= weights.sum()
        self.shares = {result.site: float(weight) for result, weight in zip(results, weights, strict=True)}
        return {
            key: np.tensordot(weights, stacked(results, key), axes=1).astype(value.dtype)
            for key, value in results[0].tensors.items()
        }
