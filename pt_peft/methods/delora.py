r"""DeLoRA (Bini et al. 2025, arXiv:2503.18225): a low-rank update whose strength is learned apart from its angle.

    ΔW = (λ / r) B Ξ A diag(‖w_j‖),    Ξ = diag(1 / (‖b_i‖ ‖a_i‖)),  A: (r, d_in),  B: (d_out, r),  λ: (1)

with w_j the columns of W. B starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Delora(LinearLayersAndParts):
    """Options of DeLoRA."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    strength: int = Field(default=2, ge=1, le=1000)
    """λ at the start."""


register(
    tuner_method(
        name="delora",
        summary="low-rank update whose direction and strength train separately",
        paper="Bini et al. 2025, arXiv:2503.18225",
        config=Delora,
        tuner=lambda config, paths: peft.DeloraConfig(
            r=config.rank, delora_lambda=config.strength, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=3e-2,
    )
)
