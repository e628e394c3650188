r"""Probabilities at another prevalence of the classes than that at which they were learned.

    p'(c | x) ∝ p(c | x) π'_c / π_c                                   one class of several
    o'(c | x) = o(c | x) o(π'_c) / o(π_c),   o(p) = p / (1 - p)       several labels, each by itself

with π_c the share of class c among the images at which p was learned, and π'_c its share among the images at hand. It
holds where only how often a class is there differs, and not what it looks like: p(x | c) is the same (Saerens et al.
2002, doi:10.1162/089976602753284446; Menon et al. 2021, arXiv:2007.07314). In logits both are an addition, `shift`.
"""

import numpy as np
import numpy.typing as npt

from pt_peft.statistics.moments import Float

STEPS = 1000
"""Most steps of `estimated`."""
TOLERANCE = 1e-6
"""Change of a share at which `estimated` ends."""
LEAST = 1e-9
"""Smallest share that `estimated` gives: at 0 it would rule a class out whatever an image shows."""


def shift(learnt: Float, wanted: Float, multilabel: bool = False) -> Float:
    """What is added to a class's logit, float64 (…,K); 0 where a share of either is not known to be between 0 and 1.

    Args:
        learnt: shares π at which the logits were learned, (K,) or (…,K).
        wanted: shares π', (K,) or (…,K).
        multilabel: whether each class is a label of its own.
    """
    most = 1.0 if multilabel else np.inf
    known = (learnt > 0) & (learnt < most) & (wanted > 0) & (wanted < most)
    old, new = (np.where(known, share, 0.5) for share in (learnt, wanted))
    moved = np.log(new) - np.log(old)
    return moved - (np.log1p(-new) - np.log1p(-old)) if multilabel else moved


def smoothed(counts: Float, images: Float | float, spread: Float | float) -> Float:
    """Shares of `counts` (…,K) among `images`, as if there were one image more, spread over the classes by `spread`.

    It keeps a class possible of which there happened to be no image.
    """
    return (counts + spread) / (images + 1)


def probabilities(logits: npt.NDArray[np.floating], multilabel: bool = False) -> Float:
    """Softmax of logits (N,K), or their sigmoid, float64 (N,K)."""
    exact = logits.astype(np.float64)
    if multilabel:
        return np.exp(-np.logaddexp(0, -exact))
    return np.exp(exact - np.logaddexp.reduce(exact, axis=1, keepdims=True))


def estimated(logits: npt.NDArray[np.floating], learnt: Float, multilabel: bool = False) -> Float:
    """The shares that make images without labels most likely, float64 (K,): EM of Saerens et al. 2002.

    From π' = π on, each step takes the mean over the images of the probabilities at the last π'. The likelihood has no
    other maximum. What it finds is as good as the probabilities are, and as the images are many.

    Args:
        logits: of N images, (N,K).
        learnt: shares π at which they were learned, (K,).
        multilabel: whether each class is a label of its own.
    """
    found = learnt
    for _ in range(STEPS):
        last = found
        found = probabilities(logits + shift(learnt, last, multilabel), multilabel).mean(axis=0)
        found = np.clip(found, LEAST, 1 - LEAST)
        if np.abs(found - last).max() < TOLERANCE:
            break
    return found
