r"""GraLoRA (Jung et al. 2025, arXiv:2505.20355): low-rank updates of the k² blocks of a weight.

    ΔW_ij = (alpha / r) B_ij A_ij,    A_ij: (r / k, d_in / k),  B_ij: (d_out / k, r / k),  i, j = 1 … k

B starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register


class GraLora(LinearLayersAndParts):
    """Options of GraLoRA."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    alpha: float = Field(default=16.0, gt=0, le=10_000)
    """Scale of the update."""
    blocks_per_side: int = Field(default=2, ge=1, le=64)
    """k; must divide the rank and the layers' widths."""


register(
    tuner_method(
        name="gralora",
        summary="low-rank updates of a weight's blocks",
        paper="Jung et al. 2025, arXiv:2505.20355",
        config=GraLora,
        tuner=lambda config, paths: peft.GraloraConfig(
            r=config.rank, alpha=peft_alpha(config.alpha), gralora_k=config.blocks_per_side, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
