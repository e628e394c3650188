"""What turns the sites' results of a round into one."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from pt_peft.exchange.tensors import Tensors
from pt_peft.schema import Strict


@dataclass(frozen=True)
class SiteResult:
    """What one site gives for a round."""

    site: str
    tensors: Tensors
    """After its local training, checked by the caller."""
    num_samples: int
    """Training images, 1 or more: the site's own word."""


class Rule(Strict):
    """The settings of one way to aggregate; its ``name`` tells it from others."""

    refactors: ClassVar[bool] = False
    """Whether it is about LoRA's products B A and may give other factors of them than the sites have sent."""
    computes_residual: ClassVar[bool] = False
    """Whether it gives a tensor besides, for what the factors do not hold."""
    robust: ClassVar[bool] = False
    """Whether it is for sites that lie."""
    keeps_components: ClassVar[bool] = True
    """Whether the i-th component of LoRA's factors stays what it is from round to round."""

    @property
    def sites_needed(self) -> int:
        """The fewest results that it makes sense of."""
        return 1

    @abstractmethod
    def start(self, before: Tensors) -> "Aggregator":
        """For one round, which started from `before`."""


class Aggregator(Protocol):
    """Takes results as they arrive, in any order."""

    def add(self, result: SiteResult) -> None:
        """Adds one site's result."""

    def result(self) -> Tensors:
        """The aggregate in the tensors' own dtypes. Raises ValueError if nothing was added."""


class Collected:
    """Keeps all results, for a statistic that needs them together: one copy of the exchanged state a site."""

    def __init__(self) -> None:
        self._results: list[SiteResult] = []

    def add(self, result: SiteResult) -> None:
        self._results.append(result)

    def results(self) -> list[SiteResult]:
        """By the sites' names, so that the order of arrival changes nothing. Raises ValueError if there are none."""
        if not self._results:
            raise ValueError("no results to aggregate")
        return sorted(self._results, key=lambda result: result.site)


def stacked(results: Sequence[SiteResult], key: str) -> np.ndarray:
    """The sites' tensors of one key, float64, along a new first axis."""
    return np.stack([result.tensors[key].astype(np.float64) for result in results])


def squared_distances(results: Sequence[SiteResult]) -> np.ndarray:
    """Squared Euclidean distances between the sites' tensors taken as one vector each, float64 (N,N)."""
    distances = np.zeros((len(results), len(results)))
    for key in results[0].tensors:
        values = stacked(results, key).reshape(len(results), -1)
        for index, value in enumerate(values):
            distances[index] += np.square(values - value).sum(axis=1)
    return distances
