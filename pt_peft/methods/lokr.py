r"""LoKr (Yeh et al. 2023, arXiv:2309.14859): the update as a Kronecker product.

    ΔW = (alpha / r) W1 ⊗ W2,    W1: (a, b),  W2: (d_out / a, d_in / b), itself of rank r where that is smaller

a and b are the factors of d_out and d_in nearest to ``factor``, or to their roots. One factor starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register


class LoKr(LinearLayersAndParts):
    """Options of LoKr."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    alpha: float = Field(default=16.0, gt=0, le=10_000)
    """Scale of the update."""
    factor: int = Field(default=-1, ge=-1, le=4096)
    """Wanted size of W1; -1: the root of the layer's."""


register(
    tuner_method(
        name="lokr",
        summary="Kronecker product of two small matrices",
        paper="Yeh et al. 2023, arXiv:2309.14859",
        config=LoKr,
        tuner=lambda config, paths: peft.LoKrConfig(
            r=config.rank, alpha=peft_alpha(config.alpha), decompose_factor=config.factor, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
