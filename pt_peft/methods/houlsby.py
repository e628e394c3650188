r"""Adapters (Houlsby et al. 2019, arXiv:1902.00751): a bottleneck behind every block's attention and behind its MLP.

    h → h + GELU(h D) U,    h the sublayer's output before it joins the residual,    D: (d, r) and U: (r, d) with biases

U starts at zero.
"""

import torch
from pydantic import Field
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.layers import Bottleneck, LastBlocks, chosen_blocks
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import Layer, ViT


class Houlsby(LastBlocks):
    """Options of the adapters."""

    rank: int = Field(default=8, ge=1, le=4096)
    """r, width of the bottlenecks."""


def inject(model: ViT, config: Houlsby) -> None:
    """Registers a bottleneck as ``houlsby`` on the attention and the MLP of each chosen block."""
    for path, block in chosen_blocks(model, config):
        for name in ("attn", "mlp"):
            sublayer = getattr(block, name, None)
            if not isinstance(sublayer, nn.Module):
                raise UserError(f"'{path}' has no sublayer of the name '{name}'.")
            sublayer.houlsby = Bottleneck(model.embed_dim, config.rank, nn.GELU())
            sublayer.register_forward_hook(_add)


def _add(sublayer: Layer, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + sublayer.houlsby(output)


register(
    PeftMethod(
        name="houlsby",
        summary="a bottleneck behind every attention and MLP",
        paper="Houlsby et al. 2019, arXiv:1902.00751",
        config=Houlsby,
        inject=inject,
        identity_at_start=True,
        merge=None,
        learning_rate=1e-2,
    )
)
