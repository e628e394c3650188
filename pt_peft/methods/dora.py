r"""DoRA (Liu et al. 2024, arXiv:2402.09353): LoRA on the direction of a weight, and its length apart.

    W' = m ⊙ (W + (alpha / r) B A) / ‖W + (alpha / r) B A‖,    A: (r, d_in),  B: (d_out, r),  m: (d_out), norms by row

B starts at zero and m at the norms of W.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register


class Dora(LinearLayersAndParts):
    """Options of DoRA."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    alpha: float = Field(default=16.0, gt=0, le=10_000)
    """Scale of the update."""


register(
    tuner_method(
        name="dora",
        summary="LoRA on a weight's direction; its magnitude trains separately",
        paper="Liu et al. 2024, arXiv:2402.09353",
        config=Dora,
        tuner=lambda config, paths: peft.LoraConfig(
            r=config.rank, lora_alpha=peft_alpha(config.alpha), use_dora=True, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
        starts_from_backbone=True,
    )
)
