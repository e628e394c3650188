r"""FedEx-LoRA (Singhal et al. 2025, arXiv:2410.09432): the means of the factors, and what they miss besides.

    A = mean(A),  B = mean(B),    R <- R + mean(B A) - mean(B) mean(A)

so that B A + R has changed by exactly the mean of the sites' changes of it.
"""

from typing import ClassVar, Literal

import numpy as np

from pt_peft.exchange.aggregation.base import Aggregator
from pt_peft.exchange.aggregation.lora_factors import Factors
from pt_peft.exchange.aggregation.lora_mean import LoraRule, PairwiseMean
from pt_peft.exchange.lora_pairs import Pair
from pt_peft.exchange.tensors import Tensors


class FedExLora(LoraRule):
    """Needs ``method.options.lora.residual``: R is a tensor (d_out, d_in) for each layer that the server sends in every round
    and no site sends back.
    """

    computes_residual: ClassVar[bool] = True

    name: Literal["fedex_lora"]

    def start(self, before: Tensors) -> Aggregator:
        def combine(pair: Pair, factors: Factors) -> dict[str, np.ndarray]:
            p, q = factors.residual()
            return {pair.residual: before[pair.residual] + p @ q}

        return PairwiseMean(self.weighting == "samples", before, combine)
