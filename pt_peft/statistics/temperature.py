r"""The temperature T by which a head's logits z are divided, so that its probabilities say how often it is right.

    T = argmin Σ_i -log softmax(z_i / T)_{y_i}          (Guo et al. 2017, arXiv:1706.04599)

over the images of all sites. Each site sends the sum for every temperature of a grid; between the points of the grid
the minimum is that of a parabola in log T.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pt_peft.statistics.moments import Float

TEMPERATURES: Float = 2.0 ** (np.arange(-24, 25) / 4)
"""The grid, from 1/64 to 64. The logits of a ridge head, which are near 0 and 1, need about a tenth; less than 1/64 is
what a head asks for that is never wrong on few images."""


def log_losses(logits: Float, labels: npt.NDArray[Any]) -> Float:
    """The sum over images of the cross-entropy in nats at each of `TEMPERATURES`, float64 (T,).

    Args:
        logits: float64 (N,K).
        labels: whole numbers (N,).
    """
    below = logits - logits.max(axis=1, keepdims=True)
    own = below[np.arange(len(labels)), labels]
    return np.array(
        [(np.log(np.exp(below / one).sum(axis=1)) - own / one).sum() for one in TEMPERATURES], dtype=np.float64
    )


def best_temperature(losses: Float) -> float:
    """The temperature from the sum of all sites' `log_losses`, (T,); 1 if they say nothing, as those of no images."""
    if not np.ptp(losses):
        return 1.0
    place = int(np.clip(losses.argmin(), 1, len(losses) - 2))
    left, middle, right = losses[place - 1 : place + 2]
    curvature = left - 2 * middle + right
    shift = float(np.clip((left - right) / (2 * curvature), -1, 1)) if curvature > 0 else 0.0
    return float(TEMPERATURES[place] * (TEMPERATURES[1] / TEMPERATURES[0]) ** shift)
