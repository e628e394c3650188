r"""Privacy for whole sites: bounded updates with noise on their sum (DP-FedAvg, McMahan et al. 2018, arXiv:1710.06963).

    x <- x + (sum_k min(1, C / ‖d_k‖) d_k + s C z) / K,    z ~ N(0, I)

with d_k the change of site k, all tensors as one vector, over the K sites that gave a result. K is known to all, and a
site that is taken out counts as d_k = 0. Imports no torch.
"""

import numpy as np

from pt_peft.exchange.aggregation.base import Collected
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.privacy import ClientPrivacy
from pt_peft.privacy.draws import Draws


def bounded(after: Tensors, before: Tensors, norm: float) -> Tensors:
    """Scales the change from `before` down to a Euclidean norm of at most `norm` over all values together.

    Returns:
        The change by key, float64; zero if any value is not finite.
    """
    change = {key: value.astype(np.float64) - before[key] for key, value in after.items()}
    length = float(np.sqrt(sum(np.square(value).sum() for value in change.values())))
    if not np.isfinite(length):
        return {key: np.zeros_like(value) for key, value in change.items()}
    scale = min(1.0, norm / length) if length else 1.0
    return {key: value * scale for key, value in change.items()}


def noise_like(tensors: Tensors, deviation: float, draws: Draws) -> Tensors:
    """Draws Gaussian noise in the shapes of `tensors`, float64, in the order of the keys."""
    return {key: deviation * draws.normal(tensors[key].size).reshape(tensors[key].shape) for key in sorted(tensors)}


def noisy_update(after: Tensors, before: Tensors, client: ClientPrivacy, min_sites: int, draws: Draws) -> Tensors:
    """Adds a site's bounded change and its share of the noise to `before`, in the tensors' own dtypes."""
    change = bounded(after, before, client.max_update_norm)
    noise = noise_like(change, client.share(min_sites) * client.max_update_norm, draws)
    return {key: (before[key] + value + noise[key]).astype(before[key].dtype) for key, value in change.items()}


class NoisyMean(Collected):
    """An `Aggregator` that averages bounded changes and adds all of the noise."""

    def __init__(self, before: Tensors, client: ClientPrivacy, draws: Draws):
        super().__init__()
        self._before = before
        self._client = client
        self._draws = draws

    def result(self) -> Tensors:
        """Returns the noisy mean in the dtypes of the start. Raises ValueError if nothing was added."""
        results = self.results()
        self.shares = {result.site: 1 / len(results) for result in results}
        summed = {key: np.zeros(value.shape) for key, value in results[0].tensors.items()}
        for result in results:  # bounded one by one, as a change takes twice the memory of the result
            for key, change in bounded(result.tensors, self._before, self._client.max_update_norm).items():
                summed[key] += change
        noise = noise_like(summed, self._client.noise_multiplier * self._client.max_update_norm, self._draws)
        return {
            key: (self._before[key] + (value + noise[key]) / len(results)).astype(self._before[key].dtype)
            for key, value in summed.items()
        }
