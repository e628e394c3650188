r"""AdaptFormer (Chen et al. 2022, arXiv:2205.13535): a bottleneck in parallel to every block's MLP.

    x_l = MLP(z) + s · ReLU(z D) U + x'_l,    z = LN(x'_l),    D: (d, r) with bias,  U: (r, d) with bias

U starts at zero. Where the backbone scales the MLP's output (LayerScale), it scales the branch too.
"""

import torch
from pydantic import Field
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.layers import Bottleneck, LastBlocks, chosen_blocks
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import Layer, ViT


class AdaptFormer(LastBlocks):
    """Options of AdaptFormer."""

    rank: int = Field(default=64, ge=1, le=4096)
    """r, width of the bottleneck."""
    scale: float = Field(default=0.1, gt=0, le=100)
    """s."""


def inject(model: ViT, config: AdaptFormer) -> None:
    """Registers the bottleneck as ``adaptformer`` on each chosen block's MLP."""
    for path, block in chosen_blocks(model, config):
        if not isinstance(getattr(block, "mlp", None), nn.Module):
            raise UserError(f"'{path}' has no MLP of the name 'mlp'.")
        block.mlp.adaptformer = Bottleneck(model.embed_dim, config.rank, nn.ReLU(), config.scale)
        block.mlp.register_forward_hook(_add)


def _add(mlp: Layer, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + mlp.adaptformer(args[0])


register(
    PeftMethod(
        name="adaptformer",
        summary="a bottleneck in parallel to every MLP",
        paper="Chen et al. 2022, arXiv:2205.13535",
        config=AdaptFormer,
        inject=inject,
        identity_at_start=True,
        merge=None,
        learning_rate=3e-2,
    )
)
