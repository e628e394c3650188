r"""Scores of membership: the higher, the surer is the attacker that the target was trained on the image.

An image's confidence is the logit of its class's probability, for which LiRA's Gaussians fit well:

    φ = log(p_y / (1 - p_y)),    loss = log(1 + exp(-φ))
"""

from collections.abc import Callable, Mapping

import numpy as np

from benchmark.membership.members import shadows_of

PER_IMAGE = 64
"""Shadows from which on LiRA estimates each image's own variance; with fewer, one of all images."""
_LEAST_STD = 1e-6
"""Confidences come from float32 logits: smaller differences are rounding. Also where all models are the same."""

Attack = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Given confidences float64 (M,N,Q) of M models on N images under Q queries (the first is the image as it is), whether the
images were members, bool (M,N), and the number of the target: scores float64 (N,). The target's own row of the second is not
looked at."""


def loss_threshold(confidences: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """The negative loss of the image (Yeom et al. 2018, arXiv:1709.01604). Needs no shadows."""
    return -np.logaddexp(0, -confidences[target, :, 0])


def lira_offline(confidences: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """LiRA with models that were not trained on the image (Carlini et al. 2022, arXiv:2112.03570, its offline variant): by how
    many standard deviations the target is surer than they are. This rises with the paper's 1 - Pr[Z > φ]; over queries, the
    mean.
    """
    mean, variance = _fit(confidences, ~members, shadows_of(target, len(members)))
    return ((confidences[target] - mean) / np.sqrt(variance)).mean(axis=1)


def lira_online(confidences: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """LiRA with models of both kinds (Carlini et al. 2022, arXiv:2112.03570, algorithm 1): the log likelihood ratio of two
    Gaussians; over queries, the mean (the paper's Gaussian with a diagonal covariance has the sum).
    """
    shadows = shadows_of(target, len(members))
    seen, unseen = (_log_density(confidences[target], *_fit(confidences, of, shadows)) for of in (members, ~members))
    return (seen - unseen).mean(axis=1)


ATTACKS: Mapping[str, Attack] = {
    "loss threshold": loss_threshold,
    "LiRA offline": lira_offline,
    "LiRA online": lira_online,
}


def _fit(confidences: np.ndarray, of: np.ndarray, shadows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (N,Q) over the `shadows` that are `of` the kind, bool (M,N), two or more of each image; variance (Q,) or (N,Q)."""
    values, chosen = confidences[shadows], of[shadows][:, :, None]
    counts = chosen.sum(axis=0)
    mean = (values * chosen).sum(axis=0) / counts
    squares = (((values - mean) ** 2) * chosen).sum(axis=0)
    variance = squares.sum(axis=0) / (counts - 1).sum() if len(shadows) < PER_IMAGE else squares / (counts - 1)
    return mean, np.maximum(variance, _LEAST_STD**2)


def _log_density(values: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return -((values - mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
