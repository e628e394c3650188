r"""Membership scores: a higher score means that the target was more likely trained on the image.

The confidence in an image is the logit of its class's probability, which LiRA's Gaussians fit well:

    phi = log(p_y / (1 - p_y)),    loss = log(1 + exp(-phi))
"""

from collections.abc import Callable, Mapping

import numpy as np

from benchmark.membership.members import shadows_of

PER_IMAGE = 64
"""With so many shadows or more LiRA estimates a variance for each image; with fewer, one for all images."""
_LEAST_STD = 1e-6
"""Confidences come from float32 logits: smaller differences are rounding. It also serves where all models are equal."""

Attack = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Returns scores float64 (N,).

Its arguments are the confidences float64 (M,N,Q) of M models in N images under Q queries, of which the first is the
image as it is; bool (M,N), true for members; the index of the target, whose row of members is not looked at.
"""


def loss_threshold(confidences: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """The negative loss of the image (Yeom et al. 2018, arXiv:1709.01604). Needs no shadows."""
    return -np.logaddexp(0, -confidences[target, :, 0])


def lira_offline(confidences: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """LiRA with models that were not trained on the image (Carlini et al. 2022, arXiv:2112.03570, offline variant).

    The score is the number of standard deviations by which the target is more confident than they are, which rises with
    the paper's 1 - Pr[Z > phi]; over queries, the mean.
    """
    mean, variance = _fit(confidences, ~members, shadows_of(target, len(members)))
    return ((confidences[target] - mean) / np.sqrt(variance)).mean(axis=1)


def lira_online(confidences: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """LiRA with models of both kinds (Carlini et al. 2022, arXiv:2112.03570, algorithm 1).

    The score is the log likelihood ratio of two Gaussians; over queries, the mean (the paper's Gaussian with a diagonal
    covariance has the sum).
    """
    shadows = shadows_of(target, len(members))
    seen, unseen = (
        _log_density(confidences[target], *_fit(confidences, kind, shadows)) for kind in (members, ~members)
    )
    return (seen - unseen).mean(axis=1)


ATTACKS: Mapping[str, Attack] = {
    "loss threshold": loss_threshold,
    "LiRA offline": lira_offline,
    "LiRA online": lira_online,
}


def _fit(confidences: np.ndarray, kind: np.ndarray, shadows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (N,Q) and variance, (Q,) or (N,Q), over `shadows` of a `kind`, bool (M,N): at least two for each image."""
    values, chosen = confidences[shadows], kind[shadows][:, :, None]
    counts = chosen.sum(axis=0)
    mean = (values * chosen).sum(axis=0) / counts
    squares = (((values - mean) ** 2) * chosen).sum(axis=0)
    variance = squares.sum(axis=0) / (counts - 1).sum() if len(shadows) < PER_IMAGE else squares / (counts - 1)
    return mean, np.maximum(variance, _LEAST_STD**2)


def _log_density(values: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return -((values - mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
