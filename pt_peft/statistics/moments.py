r"""The sums that a site sends of its images' features, and what becomes of several sites'.

With φ_i the features (d,) that enter the head, y_i the class of image i, and w_c the weight of class c:

    counts   n_c = Σ_i [y_i = c]        sums   s_c = Σ_i [y_i = c] φ_i        second   S = Σ_i w_{y_i} φ_i φ_iᵀ

A weight is the same for all images of a class, so that Σ w φ e_yᵀ follows from s and w and need not travel. Sums over
disjoint sets of images add up: whatever sites the images lie at, the totals are those of all images in one place. All
are float64: float32 sums would lose the 1e-6 to which a head should equal that of the pooled images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pt_peft.exchange.tensors import Tensors, TensorSpec

Float = npt.NDArray[np.float64]

COUNTS, SUMS, SECOND = "statistics/counts", "statistics/sums", "statistics/second"
"""Keys under which they travel."""
_BATCH = 1024
"""Images whose features are float64 at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The sums over some images of K classes, with d features each."""

    counts: Float
    """float64 (K,), images of each class; whole numbers, unless they are noised."""
    sums: Float
    """float64 (K,d), sums of features by class, without weights."""
    second: Float
    """float64 (d(d+1)/2,), the upper triangle of S, row by row."""

    def to_tensors(self) -> Tensors:
        """As they travel, see `specs`."""
        return {COUNTS: self.counts, SUMS: self.sums, SECOND: self.second}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> "Moments":
        """Takes what `to_tensors` gave; the caller has checked it by `specs`."""
        return cls(tensors[COUNTS], tensors[SUMS], tensors[SECOND])

    def matrix(self) -> Float:
        """S, float64 (d,d)."""
        return symmetric(self.second, self.sums.shape[1])


def specs(classes: int, width: int) -> dict[str, TensorSpec]:
    """What travels of `classes` classes and `width` features, by key."""
    shapes = {COUNTS: (classes,), SUMS: (classes, width), SECOND: (width * (width + 1) // 2,)}
    return {key: TensorSpec(shape, "float64") for key, shape in shapes.items()}


def class_counts(labels: npt.NDArray[Any], classes: int, least: int = 1) -> Float:
    """Images of each class, float64 (K,); 0 for a class with fewer than `least`, which is left out of all sums.

    Args:
        labels: whole numbers (N,) from 0 to `classes` - 1.
        classes: K.
        least: fewest images of a class; sums of very few images would tell of single ones.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    return np.where(counts >= least, counts, 0.0)


def class_weights(counts: Float) -> Float:
    """Weights under which all classes count alike, float64 (K,): w_c = N / (K' n_c), with K' classes that have images.

    A class without images has weight 0. The mean weight of the images is 1.
    """
    present = counts > 0
    return np.divide(counts.sum(), present.sum() * counts, out=np.zeros(len(counts)), where=present)


def effective_images(counts: Float, weights: Float) -> float:
    """How many images of equal weight would have a mean as blurred: (Σ w)² / Σ w² (Kish 1965); 0 if none has a weight.

    Args:
        counts: images of each class, float64 (K,).
        weights: of the images of each class, float64 (K,), 0 or more.
    """
    shares = weights / max(float(weights.max(initial=0)), 1e-300)  # squares of huge ones would overflow
    square = float(counts @ np.square(shares))
    return float(counts @ shares) ** 2 / square if square else 0.0


def moments(
    features: npt.NDArray[np.floating],
    labels: npt.NDArray[Any],
    classes: int,
    weights: Float | None = None,
    least: int = 1,
) -> Moments:
    """The sums of a site.

    Args:
        features: floating point (N,d), N may be 0.
        labels: whole numbers (N,) from 0 to `classes` - 1.
        classes: K.
        weights: float64 (K,), w; None for ones.
        least: as in `class_counts`: images of classes with fewer are in none of the sums.
    """
    width = features.shape[1]
    counts = class_counts(labels, classes, least)
    weight = np.ones(classes) if weights is None else weights
    sums, second = np.zeros((classes, width)), np.zeros((width, width))
    chosen = np.flatnonzero(counts[labels] > 0)
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        rows, classes_of = features[batch].astype(np.float64), labels[batch]
        sums += (classes_of == np.arange(classes)[:, None]).astype(np.float64) @ rows
        second += rows.T @ (rows * weight[classes_of, None])
    return Moments(counts, sums, upper_triangle(second))


def total(parts: Sequence[Moments]) -> Moments:
    """Adds sums up in the order given, for which all take the order of the sites' names. Raises ValueError for none."""
    if not parts:
        raise ValueError("no sums to add up")
    return Moments(
        np.sum([part.counts for part in parts], axis=0),
        np.sum([part.sums for part in parts], axis=0),
        np.sum([part.second for part in parts], axis=0),
    )


def upper_triangle(matrix: Float) -> Float:
    """The upper triangle of a symmetric matrix (d,d), row by row, (d(d+1)/2,)."""
    return matrix[np.triu_indices(len(matrix))]


def symmetric(triangle: Float, width: int) -> Float:
    """The symmetric matrix (d,d) of an upper triangle."""
    matrix = np.zeros((width, width))
    rows, columns = np.triu_indices(width)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
