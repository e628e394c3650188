r"""SCAFFOLD's mean control variate at the server (Karimireddy et al. 2020, arXiv:1910.06378). Imports no torch.

    c = sum_k w_k c_k / W,    W = sum_k w_k

over all sites k of the job, with the weights w_k of the aggregation: training images, or 1. A site tells by how much
its c_k has changed, so that one without a result keeps its c_k:

    c <- (W c + sum_{k in round} w_k (c_k_new - c_k)) / W_new

A site that has never given a result has c_k = 0, as all have at first, and a weight that nobody knows: the mean of the
known ones. With equal weights W is the number N of sites, and the step the paper's c <- c + 1/N sum (c_k_new - c_k).
"""

from collections.abc import Mapping

import numpy as np

from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.tensors import TensorError, Tensors, TensorSpec, check_tensors

_WEIGHT, _TOTAL = "weight/", "weights"
"""In a server's state, the prefix of the key of a site's weight, and the key of W."""
_NUMBER = TensorSpec((1,), "float64")


class RoundChanges:
    """The changes c_k_new - c_k of one round."""

    def __init__(self) -> None:
        self.weights: dict[str, int] = {}
        """w_k of the sites in the round."""
        self._mean = RunningMean(by_samples=True)

    def add(self, site: str, change: Tensors, weight: int) -> None:
        """Adds one site's change."""
        self._mean.add(SiteResult(site, change, weight))
        self.weights[site] = weight

    def mean(self) -> Tensors:
        """The mean by weight, float32. Raises ValueError if nothing was added."""
        return self._mean.result()


class ControlMean:
    """The weights behind c, from round to round. The server holds c itself among its tensors."""

    def __init__(self) -> None:
        self._weights: dict[str, int] = {}
        self._total = 0.0

    def weight(self, site: str, reported: int) -> int:
        """The site's weight w_k: as `reported` with its first result, so that c stays a mean of the sites' c_k."""
        return self._weights.get(site, reported)

    def step(self, before: Tensors, changes: RoundChanges, sites: int) -> Tensors:
        """Returns the new c, by key.

        Args:
            before: the old c, by key; may have other keys besides.
            changes: of the round, one or more.
            sites: number of all sites of the job.
        """
        self._weights |= changes.weights
        known = list(self._weights.values())
        total = sum(known) * max(sites, len(known)) / len(known)
        old, moved = self._total / total, sum(changes.weights.values()) / total
        self._total = total
        return {key: old * before[key] + moved * change for key, change in changes.mean().items()}

    def state(self) -> Tensors:
        """What another server needs to go on: each float64 (1,)."""
        numbers = {_TOTAL: self._total} | {_WEIGHT + site: weight for site, weight in self._weights.items()}
        return {key: np.array([number], np.float64) for key, number in numbers.items()}

    def take_over(self, state: Mapping[str, object]) -> None:
        """Goes on from the `state` of another. Raises TensorError if it is none."""
        keys = {_TOTAL, *(key for key in state if key.startswith(_WEIGHT))}
        numbers = {key: float(one[0]) for key, one in check_tensors(state, dict.fromkeys(keys, _NUMBER)).items()}
        self._total = numbers.pop(_TOTAL)
        self._weights = {key.removeprefix(_WEIGHT): int(number) for key, number in numbers.items()}
        if self._total < sum(self._weights.values()) or any(weight < 1 for weight in self._weights.values()):
            raise TensorError("the weights of the sites' control variates are not 1 or more each, and their sum")
