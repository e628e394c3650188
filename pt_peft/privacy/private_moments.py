r"""Sums of features with noise, which one release makes private for each image, and the head that they still give.

An image's features φ (d,) become x = R φ / c, scaled down to a Euclidean norm of at most 1, where c is
``max_feature_norm`` and R the identity, or a random projection to k dimensions that everybody can draw. Of an image of
class y the released vector then has the contribution

    ( a_n e_y,  a_s x e_yᵀ,  a_S (x_j x_j)_j,  a_S (√2 x_j x_l)_{j<l} )        a_n = ½,  a_s = 3/2,  a_S = √½

Each second moment is in it once. With the √2 its norm is that of the whole symmetric matrix, ‖x xᵀ‖ = ‖x‖² ≤ 1. So the
vector changes by at most √(a_n² ‖e_y‖² + a_s² ‖x‖² + a_S² ‖x‖⁴) ≤ √(¼ + 9/4 + ½) = √3 when one image comes or goes, as
with three parts of equal weight; these weights favour the sums of rare classes, which suffer most. Gaussian noise of
standard deviation √3 times ``noise_multiplier`` on every value, and division by the weights, make it one step without
sampling for `pt_peft.privacy.accounting` (Balle & Wang 2018, arXiv:1805.06530). What is computed from it later costs
nothing. In a federation each site adds its own noise, so that it need trust nobody: the sum over m sites has √m times
the standard deviation.

Before a head is solved (`repaired`), what is known of the noise is taken out of the sums:

    n_c     a class whose count is within two deviations of 0 is without images
    μ_c     = m + max(0, 1 - v_c / ‖μ̂_c - m‖²) (μ̂_c - m),  μ̂_c = s_c / n_c, m the mean of all images, v_c the expected
            square of μ̂_c's noise: the positive part of James and Stein's estimator (Stein 1981, Ann. Statist. 9:1135)
    Σ_W     its eigenvalues are at least the greatest that noise alone would have, 2 · deviation · √(k/2) (Wigner)

Imports no torch.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pt_peft.experiment.privacy import StatisticsPrivacy
from pt_peft.privacy.draws import Draws
from pt_peft.seeds import derive_seed
from pt_peft.statistics.closed_form import LinearHead
from pt_peft.statistics.moments import Float, Moments, moments, upper_triangle

COUNT_WEIGHT, SUM_WEIGHT, SECOND_WEIGHT = 0.5, 1.5, math.sqrt(0.5)
"""a_n, a_s and a_S, whose squares add up to 3; chosen among four on HAM10000's validation images."""
SENSITIVITY = math.sqrt(3)
"""The most by which the weighted vector changes with one image."""
_DEVIATIONS = 2.0
"""Deviations of the noise from 0 within which a class counts as without images."""


@dataclass(frozen=True, eq=False)
class Projection:
    """The public linear map x = A φ of features, before their norm is bounded."""

    matrix: Float
    """A, float64 (k,d)."""

    @classmethod
    def of(cls, privacy: StatisticsPrivacy, seed: int, width: int) -> "Projection":
        """The map that everybody draws alike.

        Args:
            privacy: the settings; ``projection`` is at most `width`.
            seed: the experiment's.
            width: d.
        """
        kept = privacy.projection or width
        if privacy.projection is None:
            matrix = np.eye(width)
        else:
            normal = np.random.default_rng(derive_seed(seed, "statistics projection")).normal(size=(width, kept))
            # Orthogonal rows that keep a norm on average.
            matrix = np.linalg.qr(normal)[0].T * math.sqrt(width / kept)
        return cls(matrix / privacy.max_feature_norm)

    def bounded(self, features: npt.NDArray[np.floating]) -> Float:
        """Maps features (N,d) to x, float64 (N,k), of norm 1 at most; zero for an image with any that is not finite."""
        finite = np.isfinite(features).all(axis=1, keepdims=True)
        mapped = np.where(finite, features, 0).astype(np.float64) @ self.matrix.T
        return mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1)

    def lifted(self, head: LinearHead) -> LinearHead:
        """The head of φ that is `head` of x."""
        return LinearHead(head.weight @ self.matrix, head.bias)


def private_moments(
    features: npt.NDArray[np.floating],
    labels: npt.NDArray[Any],
    classes: int,
    projection: Projection,
    noise_multiplier: float,
    draws: Draws,
) -> Moments:
    """A site's release, of k features and without weights.

    No class is left out, however few images it has: that would tell of them.

    Args:
        features: floating point (N,d).
        labels: whole numbers (N,) from 0 to `classes` - 1.
        classes: K.
        projection: the federation's.
        noise_multiplier: standard deviation of the noise over `SENSITIVITY`.
        draws: secret ones of the site's own.
    """
    exact = moments(projection.bounded(features), labels, classes)
    width = exact.sums.shape[1]
    deviation = noise_multiplier * SENSITIVITY
    rows, columns = np.triu_indices(width)
    on_second = np.where(rows == columns, 1.0, math.sqrt(0.5)) * deviation / SECOND_WEIGHT
    return Moments(
        exact.counts + draws.normal(classes) * deviation / COUNT_WEIGHT,
        exact.sums + draws.normal(classes * width).reshape(classes, width) * deviation / SUM_WEIGHT,
        exact.second + draws.normal(len(rows)) * on_second,
    )


def largest(images: int, noise_multiplier: float) -> float:
    """The largest value that a release of so many images has: noise is beyond twelve deviations once in 10^32."""
    return images + 12 * noise_multiplier * SENSITIVITY / min(COUNT_WEIGHT, SUM_WEIGHT, SECOND_WEIGHT)


def repaired(released: Moments, noise_multiplier: float, releases: int) -> Moments:
    """Sums that could be those of images, for `pt_peft.statistics.closed_form.candidates` without weights.

    Args:
        released: the total of `releases` releases of `private_moments`.
        noise_multiplier: of each.
        releases: their number.
    """
    deviation = noise_multiplier * SENSITIVITY * math.sqrt(releases)
    width = released.sums.shape[1]
    images = max(released.counts.sum(), 1.0)
    mean = released.sums.sum(axis=0) / images
    least = _DEVIATIONS * deviation / COUNT_WEIGHT
    present = (released.counts > least) | (released.counts == released.counts.max())
    counts = np.where(present, np.maximum(released.counts, 1.0), 0.0)
    off = np.divide(released.sums, counts[:, None], out=np.zeros_like(released.sums), where=present[:, None]) - mean
    square = np.square(off).sum(axis=1)
    noise = width * np.square(np.divide(deviation / SUM_WEIGHT, counts, out=np.zeros_like(counts), where=present))
    off *= np.divide(np.maximum(square - noise, 0), square, out=np.zeros_like(square), where=square > 0)[:, None]
    between = (off * counts[:, None]).T @ off
    values, vectors = np.linalg.eigh(released.matrix() - images * np.outer(mean, mean) - between)
    floor = 2 * deviation / SECOND_WEIGHT * math.sqrt(width / 2)
    within = (vectors * np.maximum(values, floor)) @ vectors.T
    sums = counts[:, None] * (mean + off)
    return Moments(counts, sums, upper_triangle(within + sums.T @ (mean + off)))
