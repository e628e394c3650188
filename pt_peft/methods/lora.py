r"""LoRA (Hu et al. 2021, arXiv:2106.09685): a rank-r update of chosen linear layers.

    y = W x + b + (alpha / r) B A x,    A: (r, d_in),  B: (d_out, r)

B starts at zero, so that the logits are unchanged at the start. On timm's fused ``qkv`` d_out = 3 d_in, and one update
serves queries, keys and values.
"""

import peft
from pydantic import Field

from pt_peft.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.method import register


class Lora(LinearLayersAndParts):
    rank: int = Field(default=4, ge=1, le=1024)
    """r; exchanged parameters grow linearly with it."""
    alpha: float = Field(default=16.0, gt=0, le=10_000)
    """Scale of the update; alpha / rank multiplies it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On the input of A, in training."""


register(
    tuner_method(
        name="lora",
        summary="rank-r update of the fused qkv (or other linear layers)",
        paper="Hu et al. 2021, arXiv:2106.09685",
        config=Lora,
        tuner=lambda config, paths: peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=3e-3,
        job=True,
    )
)
