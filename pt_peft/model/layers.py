"""The layers of a timm ViT that methods attach to, under the names that its architectures give them."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.vit import Layer, ViT
from pt_peft.schema import Strict

Target = Literal["qkv", "proj", "fc1", "fc2"]

NAMES: dict[str, tuple[str, ...]] = {
    "qkv": ("qkv", "q_proj", "k_proj", "v_proj"),
    "proj": ("proj",),
    "fc1": ("fc1", "fc1_g", "fc1_x"),
    "fc2": ("fc2",),
}
"""timm's names of a target's layers: fused or split projections, plain or gated MLPs."""


class LastBlocks(Strict):
    """The blocks that a method acts on."""

    last_blocks: int | None = Field(default=None, ge=1, le=1000)
    """Number of blocks, counted from the output; null: all."""


def chosen_blocks(model: ViT, config: LastBlocks) -> Iterator[tuple[str, Layer]]:
    """Yields the path and the module of each block that `config` chooses, from the input on.

    Raises:
        UserError: if `config` asks for more blocks than there are.
    """
    depth = len(model.blocks)
    if config.last_blocks is not None and config.last_blocks > depth:
        raise UserError(f"field 'last_blocks' is {config.last_blocks}, but it has {depth} blocks.")
    for index in range(depth - (config.last_blocks or depth), depth):
        yield f"blocks.{index}", model.blocks[index]


class Bottleneck(nn.Module):
    """x → scale · act(x D + b) U + c.

    D: (d, r) and b: (r) start as those of `nn.Linear`; U: (r, d) and c: (d) start at zero.
    """

    def __init__(self, width: int, rank: int, activation: nn.Module, scale: float = 1.0):
        """Makes the layers; the activation has no tensors.

        Args:
            width: d.
            rank: r.
            activation: act.
            scale: multiplies the output.
        """
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.activation = activation
        self.up = nn.Linear(rank, width)
        self.scale = scale
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens (…, d) to tokens (…, d)."""
        return self.scale * self.up(self.activation(self.down(x)))
