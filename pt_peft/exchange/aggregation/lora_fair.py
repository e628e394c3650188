r"""LoRA-FAIR (Bian et al. 2025, arXiv:2411.14961): the means of the factors, B corrected towards the mean product.

    A = mean(A),  B = mean(B) + D,    D = argmin ‖mean(B A) - (mean(B) + D) A‖² + lambda ‖D‖²
                                        = (mean(B A) - mean(B) A) Aᵀ (A Aᵀ + lambda I)⁻¹

The paper leaves the measure of distance open and minimises the cosine distance by gradient descent. With the Frobenius
norm, as here, the minimum has a closed form.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.aggregation.base import Aggregator
from pt_peft.exchange.aggregation.lora_factors import Factors
from pt_peft.exchange.aggregation.lora_mean import LoraRule, PairwiseMean
from pt_peft.exchange.lora_pairs import Pair
from pt_peft.exchange.tensors import Tensors


class LoraFair(LoraRule):
    """The means of LoRA's factors, with B corrected."""

    name: Literal["lora_fair"]
    regularization: float = Field(default=0.01, gt=0, le=1000)
    """lambda; the greater it is, the closer the result is to the plain means."""

    def start(self, before: Tensors) -> Aggregator:
        """Corrects B of each layer from that layer's factors alone."""

        def combine(pair: Pair, factors: Factors) -> Tensors:
            a = factors.mean_a
            p, q = factors.residual()
            gram = a @ a.T + self.regularization * np.eye(len(a))
            return {pair.b: factors.mean_b + np.linalg.lstsq(gram, (p @ (q @ a.T)).T, rcond=None)[0].T}

        return PairwiseMean(self.weighting == "samples", before, combine)
