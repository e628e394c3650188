r"""MiSS (Kang and Yin 2024, arXiv:2409.15371): one small matrix, shared over slices of the input.

    y = W x + b + Dᵀ Σ_j x_j,    x cut into slices x_j of length r,    D: (r, d_out)

D starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Miss(LinearLayersAndParts):
    """Options of MiSS."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""


register(
    tuner_method(
        name="miss",
        summary="one small matrix shared over slices of the input",
        paper="Kang and Yin 2024, arXiv:2409.15371",
        config=Miss,
        tuner=lambda config, paths: peft.MissConfig(r=config.rank, target_modules=paths),
        identity_at_start=True,
        learning_rate=3e-3,
    )
)
