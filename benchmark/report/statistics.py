"""Metrics of many resamples of the test images at once."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmark.measurements.intervals import Floats
from benchmark.oracle.predictions import Groups
from pt_peft.training.metrics import log_odds

ModelKey = TypeVar("ModelKey", bound=Hashable)
Weighted = Callable[[Floats], Floats]
"""Metrics float64 (len(METRICS),R) under weights of the test images, float32 (N,R)."""
METRICS = ("accuracy", "balanced_accuracy", "auroc")
REPLICATES = 10_000
FEWEST_SEEDS = 5
"""No bootstrap is shown over fewer."""
GENERATOR_SEED = 20240
CHUNK = 2**16
"""Elements of the weight matrix at a time: it then fits into a processor's cache, which is four times as fast."""


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
            is_class = labels.astype(bool)
            right = (logits > 0) == is_class
            # A label's balanced accuracy is the mean recall of its two answers. Axes: image, label, answer.
            self._answers = np.stack([is_class, ~is_class], axis=2)
            self._hits = self._answers & right[:, :, None]
        else:
            is_class = labels[:, None] == np.arange(classes)
            right = logits.argmax(axis=1)[:, None] == labels[:, None]
            self._answers = is_class[:, None, :]
            self._hits = self._answers & right[:, :, None]
        self._right = right.mean(axis=1, dtype=np.float32)
        scores = log_odds(logits, labels.ndim == 2)
        self._roc = [_Roc(scores[:, label], is_class[:, label]) for label in range(classes)]

    def __call__(self, weights: Floats) -> Floats:
        """Metrics float64 (len(METRICS),R), nan where undefined, for `weights` float32 (N,R), not negative."""
        total = weights.sum(axis=0)
        answers, hits = (_sums(groups, weights) for groups in (self._answers, self._hits))
        with np.errstate(invalid="ignore"):
            accuracy = self._right @ weights / total
            balanced = _mean_of_known(hits / answers, axis=1).mean(axis=0)
            areas = np.stack([roc(weights) for roc in self._roc])
        return np.stack([accuracy, balanced, _mean_of_known(areas, axis=0)])


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
    models: Mapping[ModelKey, Mapping[int, Weighted]], groups: Mapping[int, Groups], replicates: int
) -> dict[ModelKey, Floats]:
    """Draws the clusters of test images (lesions, patients) anew, with replacement (Efron 1979).

    A draw is the same for all models, so that differences between them are paired, and for all seeds: an image that
    several seeds were tested on is drawn for all of them or for none.

    Args:
        models: each model's metrics by seed, with all seeds of `groups`.
        groups: by seed, the cluster of each test image.
        replicates: R, how many are drawn.

    Returns:
        For each model, float64 (len(METRICS), K, R): its metrics with the images of each seed, in the order of seeds.
    """
    generator = np.random.default_rng(GENERATOR_SEED)
    seeds = sorted(groups)
    clusters = np.unique(np.concatenate([groups[seed] for seed in seeds]))
    places = {seed: np.searchsorted(clusters, groups[seed]) for seed in seeds}
    found: dict[ModelKey, Floats] = {model: np.empty((len(METRICS), len(seeds), replicates)) for model in models}
    step = max(16, CHUNK // len(clusters))
    for start in range(0, replicates, step):
        chunk = slice(start, min(start + step, replicates))
        drawn = generator.multinomial(
            len(clusters), np.full(len(clusters), 1 / len(clusters)), size=chunk.stop - chunk.start
        ).astype(np.float32)
        for index, seed in enumerate(seeds):
            weights = np.ascontiguousarray(drawn[:, places[seed]].T)
            for model, by_seed in models.items():
                found[model][:, index, chunk] = by_seed[seed](weights)
    return found


def clusters_of(groups: Mapping[int, Groups]) -> tuple[int, bool]:
    """How many clusters there are in all seeds' test images, and whether any is in two seeds or more."""
    each = [np.unique(one) for one in groups.values()]
    together = np.unique(np.concatenate(each))
    return len(together), len(together) < sum(map(len, each))
