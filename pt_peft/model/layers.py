"""The layers of a timm ViT that methods attach to, whatever the architecture calls them."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from pt_peft.errors import UserError
from pt_peft.schema import Strict

Target = Literal["qkv", "proj", "fc1", "fc2"]

NAMES: dict[str, tuple[str, ...]] = {
    "qkv": ("qkv", "q_proj", "k_proj", "v_proj"),
    "proj": ("proj",),
    "fc1": ("fc1", "fc1_g", "fc1_x"),
    "fc2": ("fc2",),
}
"""What timm calls a target: fused or split projections, plain or gated MLPs."""


class LastBlocks(Strict):
    """The blocks that a method acts on."""

    last_blocks: int | None = Field(default=None, ge=1, le=1000)
    """Number of blocks, counted from the output; null: all."""


def chosen_blocks(model: nn.Module, config: LastBlocks) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each block that `config` chooses, from the input on.

    Raises:
        UserError: if it asks for more blocks than there are.
    """
    depth = len(model.blocks)
    if config.last_blocks is not None and config.last_blocks > depth:
        raise UserError(f"field 'last_blocks' is {config.last_blocks}, but it has {depth} blocks.")
    for index in range(depth - (config.last_blocks or depth), depth):
        yield f"blocks.{index}", model.blocks[index]


class Bottleneck(nn.Module):
    """x (…, d) → scale · act(x D + b) U + c with D (d, r) and U (r, d); U and c start at zero, D as `nn.Linear` does."""

    def __init__(self, width: int, rank: int, activation: nn.Module, scale: float = 1.0):
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.activation = activation
        self.up = nn.Linear(rank, width)
        self.scale = scale
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return self.scale * self.up(self.activation(self.down(x)))
