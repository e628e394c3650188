"""How step sizes change over training."""

import math


def share_of_peak(step: int, steps: int, warm_up: int) -> float:
    """Step size as a share of its peak: a linear rise, then a cosine down to zero.

    Args:
        step: from 0.
        steps: number of all steps.
        warm_up: steps of the rise; the last one has the peak.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
