r"""LoRA (Hu et al. 2021, arXiv:2106.09685): a rank-r update of chosen linear layers.

    y = W x + b + (alpha / r) B A x,    A: (r, d_in),  B: (d_out, r)

B starts at zero, so that the logits are unchanged at the start. On timm's fused ``qkv`` d_out = 3 d_in, and one update
serves queries, keys and values. With ``residual`` the update is B A + R, R: (d_out, d_in) zero at first. Sites do not
train R: the server keeps in it what the means of A and B miss (`pt_peft.exchange.aggregation.fedex_lora`).
"""

from dataclasses import replace

import peft
import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import nn
from torch.nn import functional

from pt_peft.exchange.lora_pairs import RESIDUAL
from pt_peft.model.hf_peft import LinearLayersAndParts, peft_alpha, tuner_method
from pt_peft.model.method import register
from pt_peft.model.vit import Layer, ViT


class Lora(LinearLayersAndParts):
    """Options of LoRA."""

    rank: int = Field(default=4, ge=1, le=1024)
    """r; the number of exchanged parameters is proportional to it."""
    alpha: float = Field(default=16.0, gt=0, le=10_000)
    """Scale of the update; alpha / rank multiplies it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropout on the input of A, in training."""
    residual: bool = False
    """Whether there is R, for aggregation ``fedex_lora``. It travels to the sites in every round and costs one more
    product with the layer's input."""


_factors = tuner_method(
    name="lora",
    summary="rank-r update of the fused qkv (or other linear layers)",
    paper="Hu et al. 2021, arXiv:2106.09685",
    config=Lora,
    tuner=lambda config, paths: peft.LoraConfig(
        r=config.rank, lora_alpha=peft_alpha(config.alpha), lora_dropout=config.dropout, target_modules=paths
    ),
    identity_at_start=True,
    learning_rate=3e-3,
    job=True,
)


def inject(model: ViT, config: Lora) -> None:
    """Adds the factors by HF PEFT, and R beside them."""
    _factors.inject(model, config)
    if not config.residual:
        return
    for _, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_weight()
            layer.register_parameter(RESIDUAL, nn.Parameter(torch.zeros(weight.shape, device=weight.device)))
            layer.register_forward_hook(_add_residual)


def _add_residual(layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + layer.scaling["default"] * functional.linear(inputs[0], getattr(layer, RESIDUAL))


register(replace(_factors, inject=inject))
