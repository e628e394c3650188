r"""The mean of LoRA's products (FlexLoRA, Bai et al. 2024, arXiv:2402.11505; HLoRA, Liu et al. 2025, arXiv:2503.00813).

    P Q = mean(B A),    P = Q_1 R_1,  Qᵀ = Q_2 R_2,    R_1 R_2ᵀ = U S Vᵀ    (K r x K r)
    B = Q_1 U_r S_r,    A = V_rᵀ Q_2ᵀ

the best approximation of rank r, which is exact if mean(B A) has no greater rank. The product itself is never formed.
No product has a rank above d_out or d_in: components of LoRA beyond that are zero.
"""

from typing import ClassVar, Literal

import numpy as np

from pt_peft.exchange.aggregation.base import Aggregator
from pt_peft.exchange.aggregation.lora_factors import Factors
from pt_peft.exchange.aggregation.lora_mean import LoraRule, PairwiseMean
from pt_peft.exchange.lora_pairs import Pair
from pt_peft.exchange.tensors import Tensors


class LoraProduct(LoraRule):
    """The mean of the products, factored anew with the strongest component first.

    Sites of smaller rank are sent the strongest components. The rows of A are orthonormal, also those that the product
    does not need, so that every component goes on to learn; those beyond d_in are zero.
    """

    keeps_components: ClassVar[bool] = False

    name: Literal["lora_product"]

    def start(self, before: Tensors) -> Aggregator:
        """Factors the mean product of each layer by `refactored`."""
        return PairwiseMean(self.weighting == "samples", before, refactored)


def refactored(pair: Pair, factors: Factors) -> Tensors:
    """Factors of the best approximation of rank r to the mean product, strongest component first."""
    rank = factors.a.shape[1]
    p, q = factors.product_mean()
    p_basis, p_triangle = np.linalg.qr(p)
    q_basis, q_triangle = np.linalg.qr(q.T)
    left, strengths, right = np.linalg.svd(p_triangle @ q_triangle.T)
    known = min(rank, len(strengths))
    a, b = np.zeros(factors.a.shape[1:]), np.zeros(factors.b.shape[1:])
    rows = (q_basis @ right[:rank].T).T
    a[: len(rows)] = rows
    b[:, :known] = p_basis @ (left[:, :known] * strengths[:known])
    return {pair.a: a, pair.b: b}
