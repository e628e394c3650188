r"""rsLoRA (Kalajdzievski 2023, arXiv:2312.03732): LoRA whose scale does not vanish with the rank.

    y = W x + b + (alpha / √r) B A x,    A: (r, d_in),  B: (d_out, r)

W and b are the frozen layer's.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register


class RsLora(LinearLayersAndParts):
    """Options of rsLoRA."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r."""
    alpha: float = Field(default=8.0, gt=0, le=10_000)
    """alpha / √rank multiplies the update."""


register(
    tuner_method(
        name="rslora",
        summary="LoRA scaled by the root of its rank",
        paper="Kalajdzievski 2023, arXiv:2312.03732",
        config=RsLora,
        tuner=lambda config, paths: peft.LoraConfig(
            r=config.rank, lora_alpha=peft_alpha(config.alpha), use_rslora=True, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=3e-3,
    )
)
