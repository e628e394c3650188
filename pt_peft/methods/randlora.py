r"""RandLoRA (Albert et al. 2025, arXiv:2502.00987): a full-rank sum of random low-rank matrices, learnedly scaled.

    ΔW = (alpha / r) Σ_i B_i Λ_i A Γ_i,    B_i: (d_out, r), A: (r, d_in) frozen,    Λ_i: (r), Γ_i: (d_in) diagonals

A and B are drawn from ``projection_seed`` by every site and never travel. Λ starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register


class RandLora(LinearLayersAndParts):
    """Options of RandLoRA."""

    rank: int = Field(default=8, ge=1, le=1024)
    """r; a smaller one gives more bases, and more numbers."""
    alpha: float = Field(default=8.0, gt=0, le=10_000)
    """Scale of the update."""
    projection_seed: int = Field(default=0, ge=0, lt=2**31)
    """Draws A and B."""


register(
    tuner_method(
        name="randlora",
        summary="scaled sum of random low-rank matrices",
        paper="Albert et al. 2025, arXiv:2502.00987",
        config=RandLora,
        tuner=lambda config, paths: peft.RandLoraConfig(
            r=config.rank,
            randlora_alpha=peft_alpha(config.alpha),
            projection_prng_key=config.projection_seed,
            target_modules=paths,
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
