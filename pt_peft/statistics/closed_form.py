r"""Heads that follow from sums of features in closed form.

With z_i = (φ_i - μ) / σ, where mean μ and deviation σ of each feature are those of all images by their weights w_i, and
e_y the unit vector of class y:

    ridge   min over W, b of  Σ w_i ‖W z_i + b - e_{y_i}‖² / Σ w_i + λ ‖W‖²

The intercept b has no penalty, λ is relative to the mean weight, so that it means the same for few and for many images,
and W and b are then written for φ. A feature that is the same in all images has no part in the head.

    lda   logits_c(φ) = (μ_c - m)ᵀ C⁻¹ (φ - m) - ½ (μ_c - m)ᵀ C⁻¹ (μ_c - m)
          C = (1 - λ) Σ_W + λ tr(Σ_W)/d · I,    Σ_W = Σ w_i (φ_i - μ_{y_i})(φ_i - μ_{y_i})ᵀ / Σ w_i

is Fisher's linear discriminant with one covariance for all classes, shrunk towards its mean diagonal, and uniform
priors. With w = 1, classes count in Σ_W by their images; with `class_weights`, alike, which is what scikit-learn's
``LinearDiscriminantAnalysis(solver="lsqr")`` does for uniform priors. m, the mean of the class means, changes no
probability.

A class without images gets the mean of the other classes' logits less 1: it never has the greatest, whatever the image,
and training can go on from there. C⁻¹ and its like are pseudoinverses, so that every head is finite.

In federations: Fed3R (Fanì et al. 2024, arXiv:2406.01116), AFL (He et al. 2025, arXiv:2405.16240).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pt_peft.statistics.moments import Float, Moments

Kind = Literal["ridge", "lda"]

_CONSTANT = 1e-12
"""A feature varies if its variance is more than this share of its mean square. Rounding of float32 features alone makes
1e-15 of it."""
_BATCH = 4096
"""Images whose logits are computed at a time."""


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier of features: logits = W φ + b."""

    weight: Float
    """float64 (K,d)."""
    bias: Float
    """float64 (K,)."""

    def logits(self, features: npt.NDArray[np.floating]) -> Float:
        """Logits float64 (N,K) of features (N,d)."""
        return features @ self.weight.T + self.bias

    def at_temperature(self, temperature: float) -> "LinearHead":
        """The head whose logits are divided by `temperature`, see `pt_peft.statistics.temperature`."""
        return LinearHead(self.weight / temperature, self.bias / temperature)


def candidates(kind: Kind, moments: Moments, weights: Float | None, penalties: Sequence[float]) -> list[LinearHead]:
    """The heads of all `penalties`, by one decomposition of O(d³).

    Args:
        kind: of the head.
        moments: the sums of all images.
        weights: float64 (K,), the weights of the classes that `moments.second` was made with; None for ones.
        penalties: λ: for ``ridge`` 0 or more, for ``lda`` from 0 to 1.

    Raises:
        ValueError: if no class has both images and a weight.
    """
    system = _SYSTEMS[kind](moments, weights)
    return [system.completed(system.head(penalty)) for penalty in penalties]


def leave_one_out(
    kind: Kind,
    moments: Moments,
    weights: Float | None,
    penalties: Sequence[float],
    features: npt.NDArray[np.floating],
    labels: npt.NDArray[Any],
) -> Iterator[Float]:
    """Logits of each of a site's images by the head that all images but this one would give, exactly.

    The weights of the classes are kept as they are, and for ``ridge`` σ and λ Σ w_i too. ``ridge`` takes each image's
    leverage h_i = w_i (1 + z_iᵀ (A + λ)⁻¹ z_i) / Σ w_i, A the covariance of z (Allen 1974, Technometrics 16:125-127),

        logits = (W z_i + b - h_i e_{y_i}) / (1 - h_i)

    and ``lda`` the rank-one change of Σ_W, in whose eigenvectors the shrunk covariance stays diagonal.

    Args:
        kind: of the head.
        moments: as in `candidates`.
        weights: as in `candidates`.
        penalties: as in `candidates`.
        features: floating point (N,d) of images that are in `moments`.
        labels: their classes, whole numbers (N,).

    Yields:
        For each penalty logits float64 (N,K), each image's up to a constant that all its classes share.

    Raises:
        ValueError: as `candidates` does.
    """
    system = _SYSTEMS[kind](moments, weights)
    for penalty in penalties:
        logits = np.empty((len(labels), len(moments.counts)))
        for start in range(0, len(labels), _BATCH):
            batch = slice(start, start + _BATCH)
            logits[batch] = system.without_each(penalty, features[batch].astype(np.float64), labels[batch])
        yield logits


class _System(ABC):
    """A kind of head, and what all its penalties share."""

    present: npt.NDArray[np.bool_]
    """bool (K,), classes that have images and a weight."""

    def __init__(self, moments: Moments, weights: Float | None):
        self.counts = moments.counts
        self.weights = np.ones(len(self.counts)) if weights is None else weights
        self.shares = np.maximum(self.counts * self.weights, 0.0)
        """Sum of the weights of each class's images."""
        self.present = self.shares > 0
        if not self.present.any():
            raise ValueError("no class has images")

    @abstractmethod
    def head(self, penalty: float) -> LinearHead:
        """The head; rows of classes without images may be anything."""

    @abstractmethod
    def without_each(self, penalty: float, features: Float, labels: npt.NDArray[Any]) -> Float:
        """Logits (N,K) of features (N,d) of present classes, by the sums without the image itself."""

    def completed(self, head: LinearHead) -> LinearHead:
        """`head` with rows for the classes without images."""
        weight, bias = head.weight.copy(), head.bias.copy()
        weight[~self.present], bias[~self.present] = weight[self.present].mean(axis=0), bias[self.present].mean() - 1
        return LinearHead(weight, bias)

    def completed_logits(self, logits: Float, labels: npt.NDArray[Any]) -> Float:
        """`logits` of images left out one by one, with those of classes that then have no images."""
        present = np.tile(self.present, (len(logits), 1))
        rows = np.arange(len(logits))
        present[rows, labels] = (self.counts[labels] > 1) | (self.present.sum() == 1)
        mean = np.mean(logits, axis=1, where=present)
        return np.where(present, logits, mean[:, None] - 1)


class _Ridge(_System):
    def __init__(self, moments: Moments, weights: Float | None):
        super().__init__(moments, weights)
        self.total = self.shares.sum()
        self.prior = self.shares / self.total
        self.mean = self.weights @ moments.sums / self.total
        square = moments.matrix() / self.total
        covariance = square - np.outer(self.mean, self.mean)
        variance = np.diagonal(covariance)
        varies = variance > _CONSTANT * np.diagonal(square)
        self.inverse = np.divide(1.0, np.sqrt(np.abs(variance)), out=np.zeros(len(variance)), where=varies)
        """1 / σ, and 0 for a feature that does not vary."""
        self.values, self.vectors = np.linalg.eigh(covariance * np.outer(self.inverse, self.inverse))
        crossed = (moments.sums - np.outer(self.counts, self.mean)) * self.weights[:, None] / self.total
        self.targets = crossed * self.inverse @ self.vectors
        """Covariance of targets and z, in the eigenvectors of z's."""

    def head(self, penalty: float) -> LinearHead:
        weight = (self.targets * _pseudoinverse(self.values, penalty)) @ self.vectors.T * self.inverse
        return LinearHead(weight, self.prior - weight @ self.mean)

    def without_each(self, penalty: float, features: Float, labels: npt.NDArray[Any]) -> Float:
        turned = ((features - self.mean) * self.inverse) @ self.vectors
        solved = turned * _pseudoinverse(self.values, penalty)
        logits = solved @ self.targets.T + self.prior
        leverage = self.weights[labels] * (1 + (turned * solved).sum(axis=1)) / self.total
        logits[np.arange(len(labels)), labels] -= leverage
        # A leverage of 1 is that of an image that alone decides its logits.
        logits /= np.maximum(1 - leverage, 1e-9)[:, None]
        return self.completed_logits(logits, labels)


class _Lda(_System):
    def __init__(self, moments: Moments, weights: Float | None):
        super().__init__(moments, weights)
        means = np.divide(moments.sums, self.counts[:, None], where=self.present[:, None], out=moments.sums * 0)
        self.centre = means[self.present].mean(axis=0)
        scatter = moments.matrix() - (means * self.shares[:, None]).T @ means
        values, self.vectors = np.linalg.eigh(scatter)
        self.values = np.maximum(values, 0.0)
        """Of the scatter within classes, which is Σ w_i times its covariance."""
        self.turned = (means - self.centre) @ self.vectors

    def head(self, penalty: float) -> LinearHead:
        shrunk = ((1 - penalty) * self.values + penalty * self.values.mean()) / self.shares.sum()
        solved = self.turned * _pseudoinverse(shrunk)
        weight = solved @ self.vectors.T
        return LinearHead(weight, -(solved * self.turned).sum(axis=1) / 2 - weight @ self.centre)

    def without_each(self, penalty: float, features: Float, labels: npt.NDArray[Any]) -> Float:
        rows, counts = np.arange(len(labels)), self.counts[labels]
        own = self.weights[labels]
        turned = (features - self.centre) @ self.vectors
        deviation = turned - self.turned[labels]
        others = np.maximum(counts - 1, 1)  # a class of one image has no deviation, and no mean without it
        change = own * counts / others
        total = np.maximum(self.shares.sum() - own, 1e-300)
        spread = np.maximum(self.values.sum() - change * np.square(deviation).sum(axis=1), 0) / len(self.values)
        shrunk = ((1 - penalty) * self.values + penalty * spread[:, None]) / total[:, None]
        inverse = _pseudoinverse(shrunk)
        # (G - a u uᵀ)⁻¹ = G⁻¹ + f G⁻¹ u uᵀ G⁻¹ (Sherman and Morrison 1950)
        solved = deviation * inverse
        share = (1 - penalty) * change / total
        factor = share / np.maximum(1 - share * (solved * deviation).sum(axis=1), 1e-9)
        crossed = solved @ self.turned.T
        logits = (turned * inverse) @ self.turned.T + (factor * (solved * turned).sum(axis=1))[:, None] * crossed
        logits -= (inverse @ np.square(self.turned).T + factor[:, None] * np.square(crossed)) / 2
        mean = self.turned[labels] - deviation / others[:, None]
        crossed_own = (solved * mean).sum(axis=1)
        half = turned - mean / 2
        logits[rows, labels] = (inverse * mean * half).sum(axis=1) + factor * crossed_own * (solved * half).sum(axis=1)
        return self.completed_logits(logits, labels)


_SYSTEMS: dict[Kind, type[_System]] = {"ridge": _Ridge, "lda": _Lda}


def _pseudoinverse(values: Float, penalty: float = 0.0) -> Float:
    """1 / (values + penalty) of eigenvalues (…,d), and 0 where that is zero but for rounding."""
    least = values.shape[-1] * np.finfo(np.float64).eps * np.abs(values).max(axis=-1, keepdims=True, initial=0)
    shifted = values + penalty
    return np.divide(1.0, shifted, out=np.zeros_like(shifted), where=shifted > least)
