r"""The sites' factors of one LoRA update, and their means, which never form the d_out x d_in product.

    mean(B A) = sum_k w_k B_k A_k = P Q,    P = [w_1 B_1 ... w_K B_K],  Q = [A_1; ...; A_K]

Site k has the weight w_k; the weights add up to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.lora_pairs import Pair
from pt_peft.exchange.tensors import Array


def weights_of(results: Sequence[SiteResult], by_samples: bool) -> Array:
    """Weights of the sites, float64 (K,) with sum 1: by their training images, or all alike."""
    weights = np.array([result.num_samples if by_samples else 1 for result in results], dtype=np.float64)
    return weights / weights.sum()


@dataclass(frozen=True)
class Factors:
    """The factors of K sites at one rank r; components that a site of smaller rank lacks are zero."""

    a: Array
    """float64 (K, r, d_in)."""
    b: Array
    """float64 (K, d_out, r)."""
    weights: Array
    """float64 (K,), with sum 1."""

    @classmethod
    def of(cls, results: Sequence[SiteResult], pair: Pair, weights: Array) -> "Factors":
        """Takes the factors of one layer from the sites' results."""
        a, b = (np.stack([result.tensors[key] for result in results]).astype(np.float64) for key in (pair.a, pair.b))
        return cls(a, b, weights)

    @property
    def mean_a(self) -> Array:
        """mean(A), float64 (r, d_in)."""
        return np.tensordot(self.weights, self.a, axes=1)

    @property
    def mean_b(self) -> Array:
        """mean(B), float64 (d_out, r)."""
        return np.tensordot(self.weights, self.b, axes=1)

    def product_mean(self) -> tuple[Array, Array]:
        """P (d_out, K r) and Q (K r, d_in) with P Q = mean(B A)."""
        p = np.concatenate(list(self.b * self.weights[:, None, None]), axis=1)
        return p, np.concatenate(list(self.a), axis=0)

    def residual(self) -> tuple[Array, Array]:
        """P (d_out, K r) and Q (K r, d_in) with P Q = mean(B A) - mean(B) mean(A), their covariance over sites."""
        p = np.concatenate(list((self.b - self.mean_b) * self.weights[:, None, None]), axis=1)
        return p, np.concatenate(list(self.a - self.mean_a), axis=0)


def squared_norm(p: Array, q: Array) -> float:
    """‖P Q‖² (Frobenius norm) = trace(PᵀP QQᵀ).

    Args:
        p: (m, n).
        q: (n, k). With many sites n is large, and P Q takes less work than PᵀP and QQᵀ, whose work grows as n².
    """
    (m, n), k = p.shape, q.shape[1]
    if m * k < n * (m + k):
        return float(np.square(p @ q).sum())
    return float(np.einsum("ij,ji->", p.T @ p, q @ q.T))
