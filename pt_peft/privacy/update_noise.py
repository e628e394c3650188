r"""Privacy for whole sites: bounded updates with noise on their sum (DP-FedAvg, McMahan et al. 2018, arXiv:1710.06963).

    x <- x + (sum_k min(1, C / ‖d_k‖) d_k + s C z) / K,    z ~ N(0, I)

with d_k what site k has changed, all tensors as one vector, of the K sites that gave a result: the number is known to all, and
a site that is taken out counts as d_k = 0. Imports no torch.
"""

import numpy as np

from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.privacy import ClientPrivacy
from pt_peft.privacy.draws import Draws


def bounded(after: Tensors, before: Tensors, norm: float) -> dict[str, np.ndarray]:
    """What has changed, float64 by key, scaled down to a Euclidean norm of at most `norm` over all values together; zero if a
    value is not finite.
    """
    change = {key: value.astype(np.float64) - before[key] for key, value in after.items()}
    length = float(np.sqrt(sum(np.square(value).sum() for value in change.values())))
    if not np.isfinite(length):
        return {key: np.zeros_like(value) for key, value in change.items()}
    scale = min(1.0, norm / length) if length else 1.0
    return {key: value * scale for key, value in change.items()}


def noise_like(tensors: dict[str, np.ndarray], deviation: float, draws: Draws) -> dict[str, np.ndarray]:
    """Gaussian noise of the shapes of `tensors`, float64 by key; drawn in the order of the keys."""
    return {key: deviation * draws.normal(tensors[key].size).reshape(tensors[key].shape) for key in sorted(tensors)}


def noisy_update(after: Tensors, before: Tensors, client: ClientPrivacy, min_sites: int, draws: Draws) -> Tensors:
    """What a site sends: `before`, its bounded change and its share of the noise, in the tensors' own dtypes."""
    change = bounded(after, before, client.max_update_norm)
    noise = noise_like(change, client.share(min_sites) * client.max_update_norm, draws)
    return {key: (before[key] + value + noise[key]).astype(before[key].dtype) for key, value in change.items()}


class NoisyMean:
    """An `Aggregator`: the mean of bounded updates, with all of the noise."""

    def __init__(self, before: Tensors, client: ClientPrivacy, draws: Draws):
        self._before = before
        self._client = client
        self._draws = draws
        self._changes: list[tuple[str, dict[str, np.ndarray]]] = []

    def add(self, result: SiteResult) -> None:
        self._changes.append((result.site, bounded(result.tensors, self._before, self._client.max_update_norm)))

    def result(self) -> Tensors:
        if not self._changes:
            raise ValueError("no results to aggregate")
        # By the sites' names, so that the order of arrival changes nothing.
        changes = [change for _, change in sorted(self._changes, key=lambda entry: entry[0])]
        noise = noise_like(changes[0], self._client.noise_multiplier * self._client.max_update_norm, self._draws)
        return {
            key: (self._before[key] + (sum(change[key] for change in changes) + noise[key]) / len(changes)).astype(
                self._before[key].dtype
            )
            for key in changes[0]
        }
