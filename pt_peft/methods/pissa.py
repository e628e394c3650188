r"""PiSSA (Meng et al. 2024, arXiv:2404.02948): LoRA that starts from the principal part of the weight.

    W = U S Vᵀ,    B0 = U_r (S_r / s)^½: (d_out, r),    A0 = (S_r / s)^½ V_rᵀ: (r, d_in)
    y = (W - s B0 A0) x + b + s B A x

with s = alpha / r. Every site computes the frozen rest W - s B0 A0 from the same pinned backbone. A and B come from
the server, so that the signs of a site's own decomposition do not matter. Parts of ``qkv`` cannot be chosen: the rest
is that of a whole layer.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayers, peft_alpha, tuner_method
from pt_peft.model.method import register


class Pissa(LinearLayers):
    """Options of PiSSA."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    alpha: float = Field(default=4.0, gt=0, le=10_000)
    """s = alpha / rank."""


register(
    tuner_method(
        name="pissa",
        summary="LoRA that starts from the principal singular vectors",
        paper="Meng et al. 2024, arXiv:2404.02948",
        config=Pissa,
        tuner=lambda config, paths: peft.LoraConfig(
            r=config.rank, lora_alpha=peft_alpha(config.alpha), init_lora_weights="pissa", target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
        starts_from_backbone=True,
    )
)
