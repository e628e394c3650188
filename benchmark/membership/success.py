"""Measures how well scores tell members from others."""

from dataclasses import dataclass

import numpy as np

LEVELS = (0.01, 0.001)
"""False positive rates at which the true positive rate is reported."""
_DRAWS, _SEED = 500, 20240


@dataclass(frozen=True)
class Success:
    """The success of one attack on one target."""

    auc: float
    """Share of (member, other) pairs in the right order, ties counted by half."""
    balanced_accuracy: float
    """Mean of true positive and true negative rate at the best threshold, chosen on the same scores: at least 0.5."""
    tpr: tuple[float | None, ...]
    """For each of `LEVELS` the highest true positive rate whose false positive rate is not above it.

    None where there are too few others for one false positive.
    """


def success(scores: np.ndarray, members: np.ndarray) -> Success:
    """The success of `scores` float (N,) on `members` bool (N,), of which at least one is true and one false."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores: a threshold cannot separate them
    hits = np.append(0, np.cumsum(members[order])[last])
    alarms = np.append(0, np.cumsum(~members[order])[last])
    tpr, fpr = hits / hits[-1], alarms / alarms[-1]
    at_levels = tuple(
        float(tpr[fpr <= level + 1e-12].max()) if alarms[-1] * level >= 1 - 1e-12 else None for level in LEVELS
    )
    return Success(float(np.trapezoid(tpr, fpr)), float((1 + (tpr - fpr).max()) / 2), at_levels)


def chance(members: int, others: int) -> float:
    """The mean best balanced accuracy of random scores.

    It is more than 0.5, as the threshold is chosen on the same scores.
    """
    generator = np.random.default_rng(_SEED)
    is_member = np.arange(members + others) < members
    best = [success(generator.random(len(is_member)), is_member).balanced_accuracy for _ in range(_DRAWS)]
    return float(np.mean(best))
