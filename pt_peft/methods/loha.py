r"""LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): the update as an elementwise product of two low-rank ones.

    ΔW = (alpha / r) (W1a W1b) ⊙ (W2a W2b),    W1a, W2a: (d_out, r),  W1b, W2b: (r, d_in)

One factor starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register


class LoHa(LinearLayersAndParts):
    """Options of LoHa."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    alpha: float = Field(default=16.0, gt=0, le=10_000)
    """Scale of the update."""


register(
    tuner_method(
        name="loha",
        summary="elementwise product of two low-rank updates",
        paper="Hyeon-Woo et al. 2021, arXiv:2108.06098",
        config=LoHa,
        tuner=lambda config, paths: peft.LoHaConfig(
            r=config.rank, alpha=peft_alpha(config.alpha), target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
