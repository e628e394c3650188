r"""FedEx-LoRA (Singhal et al. 2025, arXiv:2410.09432): the means of the factors, and a residual for what they miss.

    A = mean(A),  B = mean(B),    R <- R + mean(B A) - mean(B) mean(A)

so that B A + R has changed by exactly the mean of the sites' changes of it.
"""

from typing import ClassVar, Literal

from pt_peft.exchange.aggregation.base import Aggregator
from pt_peft.exchange.aggregation.lora_factors import Factors
from pt_peft.exchange.aggregation.lora_mean import LoraRule, PairwiseMean
from pt_peft.exchange.lora_pairs import Pair
from pt_peft.exchange.tensors import Tensors


class FedExLora(LoraRule):
    """The means of LoRA's factors, and the exact residual R.

    It needs ``method.options.lora.residual``. R is a tensor (d_out, d_in) for each layer, which the server sends in
    every round and no site sends back.
    """

    computes_residual: ClassVar[bool] = True

    name: Literal["fedex_lora"]

    def start(self, before: Tensors) -> Aggregator:
        """Adds the round's residual to that in `before`."""

        def combine(pair: Pair, factors: Factors) -> Tensors:
            p, q = factors.residual()
            return {pair.residual: before[pair.residual] + p @ q}

        return PairwiseMean(self.weighting == "samples", before, combine)
