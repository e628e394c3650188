"""Intervals over seeds, and metrics of many resamples of the test images at once."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from scipy.stats import t

Floats = npt.NDArray[np.floating]
ModelKey = TypeVar("ModelKey", bound=Hashable)
METRICS = ("accuracy", "balanced_accuracy", "auroc")
REPLICATES = 1000
LEVEL = 0.95
GENERATOR_SEED = 20240
CHUNK = 2**16
"""Elements of the weight matrix at a time: it then fits into a processor's cache, which is four times as fast."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval; `low` and `high` are None where only one value is known."""

    value: float
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, ± t(0.975, n - 1) s / sqrt(n) (Student 1908)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def with_percentiles(value: float, replicates: Floats) -> Estimate:
    """`value` with the percentile interval of its bootstrap `replicates`, float (R,) (Efron 1979).

    Replicates in which the value is undefined (nan) are left out.
    """
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return Estimate(value)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def least_squares_slopes(x: Floats, y: Floats) -> Floats:
    """Slopes float64 (R,) of the ordinary least squares lines through `x` (M,) and each column of `y` (M,R)."""
    centred = x - x.mean()
    return centred @ y / (centred @ centred)


class WeightedMetrics:
    """Metrics of one model under weights of the test images.

    What does not depend on the weights is computed once. With weights of 1 the metrics are those of
    `pt_peft.training.metrics.evaluate_predictions`.
    """

    def __init__(self, logits: Floats, labels: npt.NDArray[np.integer]) -> None:
        """Sorts the images.

        Args:
            logits: floating point (N,K).
            labels: int64 (N,), or uint8 (N,K) for ``multilabel``.
        """
        logits = logits.astype(np.float64)
        classes = logits.shape[1]
        if labels.ndim == 2:
            is_class, scores = labels.astype(bool), logits
            right = (logits > 0) == is_class
            # A label's balanced accuracy is the mean recall of its two answers. Axes: image, label, answer.
            self._answers = np.stack([is_class, ~is_class], axis=2)
            self._hits = self._answers & right[:, :, None]
        else:
            is_class, scores = labels[:, None] == np.arange(classes), softmax(logits, axis=1)
            right = logits.argmax(axis=1)[:, None] == labels[:, None]
            self._answers = is_class[:, None, :]
            self._hits = self._answers & right[:, :, None]
        self._right = right.mean(axis=1, dtype=np.float32)
        self._roc = [_Roc(scores[:, label], is_class[:, label]) for label in range(classes)]

    def __call__(self, weights: Floats) -> Floats:
        """Metrics float64 (len(METRICS),R), nan where undefined, for `weights` float32 (N,R), not negative."""
        total = weights.sum(axis=0)
        answers, hits = (_sums(groups, weights) for groups in (self._answers, self._hits))
        with np.errstate(invalid="ignore"):
            balanced = _mean_of_known(hits / answers, axis=1).mean(axis=0)
            areas = np.stack([roc(weights) for roc in self._roc])
        return np.stack([self._right @ weights / total, balanced, _mean_of_known(areas, axis=0)])


class _Roc:
    """Area under one class's weighted ROC curve.

    It is the weighted share of (positive, negative) pairs in the right order, ties counted by half (Hanley and McNeil
    1982).
    """

    def __init__(self, scores: Floats, positive: npt.NDArray[np.bool_]) -> None:
        self._positive = np.flatnonzero(positive)
        negative = np.flatnonzero(~positive)
        self._negative = negative[np.argsort(scores[negative], kind="stable")]
        in_order = scores[self._negative]
        self._below = np.searchsorted(in_order, scores[self._positive], side="left")
        self._not_above = np.searchsorted(in_order, scores[self._positive], side="right")

    def __call__(self, weights: Floats) -> Floats:
        positive = weights[self._positive]
        negative = np.zeros((len(self._negative) + 1, weights.shape[1]), np.float32)  # exact for counts up to 2^24
        np.cumsum(weights[self._negative], axis=0, out=negative[1:])
        pairs = np.einsum("pr,pr->r", positive, negative[self._below] + negative[self._not_above], dtype=np.float64) / 2
        return pairs / (positive.sum(axis=0, dtype=np.float64) * negative[-1])


def _sums(groups: npt.NDArray[np.bool_], weights: Floats) -> Floats:
    """Sums (G,A,R) of `weights` (N,R) over the images of each of the `groups`, bool (N,G,A)."""
    flat = groups.reshape(len(groups), -1).astype(np.float32)
    return (flat.T @ weights).astype(np.float64).reshape(*groups.shape[1:], -1)


def _mean_of_known(values: Floats, axis: int) -> Floats:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def resample(
    models: Mapping[ModelKey, Mapping[int, WeightedMetrics]], counts: Mapping[int, int], replicates: int
) -> dict[ModelKey, Floats]:
    """A two-stage paired bootstrap: draws seeds and, within each drawn seed, its test images, both with replacement.

    All models see the same draws, so that differences between them are paired.

    Args:
        models: each model's metrics by seed, with all seeds of `counts`.
        counts: test images by seed.
        replicates: how many are drawn.

    Returns:
        For each model, float64 (len(METRICS), replicates): metrics averaged over the drawn seeds.
    """
    generator = np.random.default_rng(GENERATOR_SEED)
    seeds = sorted(counts)
    drawn = generator.integers(len(seeds), size=(len(seeds), replicates))
    sums = {model: np.zeros((len(METRICS), replicates)) for model in models}
    for index, seed in enumerate(seeds):
        _, owners = np.nonzero(drawn == index)
        images = counts[seed]
        step = max(16, CHUNK // images)
        for start in range(0, len(owners), step):
            chunk = owners[start : start + step]
            weights = generator.multinomial(images, np.full(images, 1 / images), size=len(chunk))
            weights = np.ascontiguousarray(weights.T, dtype=np.float32)
            for model, by_seed in models.items():
                np.add.at(sums[model].T, chunk, by_seed[seed](weights).T)  # a replicate may draw a seed twice
    return {model: total / len(seeds) for model, total in sums.items()}
