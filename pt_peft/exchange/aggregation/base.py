"""What all rules that combine the sites' results of a round share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from pt_peft.exchange.tensors import Array, Tensors
from pt_peft.schema import Strict


@dataclass(frozen=True)
class SiteResult:
    """The result of one site in a round."""

    site: str
    tensors: Tensors
    """The model's exchanged tensors after local training, by canonical key; checked by the caller."""
    num_samples: int
    """Training images, 1 or more, as the site reports them."""


class Rule(Strict):
    """The settings of one aggregation rule; its ``name`` selects it."""

    refactors: ClassVar[bool] = False
    """Whether the rule combines LoRA's products B A, and may factor them otherwise than the sites do."""
    computes_residual: ClassVar[bool] = False
    """Whether the rule also computes LoRA's residual tensors."""
    robust: ClassVar[bool] = False
    """Whether the rule withstands sites that lie."""
    keeps_components: ClassVar[bool] = True
    """Whether the i-th component of LoRA's factors stays the same component from round to round."""

    @property
    def sites_needed(self) -> int:
        """Fewest results in a round that the rule can combine."""
        return 1

    def weight(self, num_samples: int) -> int:
        """Weight of a site with `num_samples` training images in a weighted mean; 1 if all sites count alike."""
        return 1

    @abstractmethod
    def start(self, before: Tensors) -> "Aggregator":
        """Starts to aggregate one round.

        Args:
            before: the exchanged tensors that the round started from.
        """


class Aggregator(Protocol):
    """Combines the results of one round, which arrive in any order."""

    shares: dict[str, float]
    """Each site's share of the aggregate once `result` has made it, adding up to 1; empty where sites have none, as in
    a median."""

    def add(self, result: SiteResult) -> None:
        """Adds one site's result."""
        ...

    def result(self) -> Tensors:
        """Returns the aggregate in the tensors' own dtypes. Raises ValueError if nothing was added."""
        ...


class Collected:
    """Keeps all results for a statistic that needs them together, one copy of the exchanged tensors a site."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self._results: list[SiteResult] = []

    def add(self, result: SiteResult) -> None:
        """Adds one site's result."""
        self._results.append(result)

    def results(self) -> list[SiteResult]:
        """All results, sorted by site so that the order of arrival changes nothing. Raises ValueError if none came."""
        if not self._results:
            raise ValueError("no results to aggregate")
        return sorted(self._results, key=lambda result: result.site)


def stacked(results: Sequence[SiteResult], key: str) -> Array:
    """Stacks the sites' tensors of one key along a new first axis, float64."""
    return np.stack([result.tensors[key].astype(np.float64) for result in results])


def squared_distances(results: Sequence[SiteResult]) -> Array:
    """Squared Euclidean distances between the sites, float64 (N, N); a site's tensors count as one vector."""
    distances = np.zeros((len(results), len(results)))
    for key in results[0].tensors:
        values = stacked(results, key).reshape(len(results), -1)
        for index, value in enumerate(values):  # each pair once
            distances[index, index + 1 :] += np.square(values[index + 1 :] - value).sum(axis=1)
    return distances + distances.T
