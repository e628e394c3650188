r"""LoRA (Hu et al. 2021, arXiv:2106.09685): a rank-r update of chosen linear layers.

    y = W x + b + (alpha / r) B A x,    A: (r, d_in),  B: (d_out, r)

B starts at zero, so that the logits are unchanged at the start. On timm's fused ``qkv`` d_out = 3 d_in, and one update
serves queries, keys and values.
"""

from typing import Literal

import peft
from pydantic import Field
from torch import nn

from pt_peft.method import PeftMethod, register
from pt_peft.schema import Strict


class Lora(Strict):
    rank: int = Field(default=4, ge=1, le=1024)
    """r; exchanged parameters grow linearly with it."""
    alpha: float = Field(default=8.0, gt=0, le=10_000)
    """Scale of the update; alpha / rank multiplies it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On the input of A, in training."""
    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = Field(default=("qkv",), min_length=1)
    """Linear layers of every block that are updated."""


def inject(model: nn.Module, config: Lora) -> None:
    """Wraps the target layers of each block by HF peft's LoRA layers, in place."""
    targets = [
        name
        for name, module in model.blocks.named_modules(prefix="blocks")
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets
    ]
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets, bias="none"
    )
    peft.inject_adapter_in_model(lora, model)


register(
    PeftMethod(
        name="lora",
        summary="rank-r update of the fused qkv (or other linear layers)",
        paper="Hu et al. 2021, arXiv:2106.09685",
        config=Lora,
        inject=inject,
        identity_at_start=True,
        mergeable=True,
        trains_backbone=False,
    )
)
