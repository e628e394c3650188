"""Prompt tokens in the blocks of a timm ViT."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pt_peft.errors import UserError
from pt_peft.model.vit import Layer, ViT

MakePrompts = Callable[[Layer], torch.Tensor]
"""Takes a block and returns its prompts (n, d). Refers to its argument alone, so that a copy of the model works."""


def bound(model: ViT) -> float:
    """V of the uniform distribution U(-v, v) that prompts start from.

    v = sqrt(6 / (3 p² + d)), p the patch's side in pixels (Jia et al. 2022, their Xavier rule).
    """
    side = model.patch_embed.patch_size
    return math.sqrt(6.0 / (3 * (side * side if isinstance(side, int) else math.prod(side)) + model.embed_dim))


def insert(model: ViT, blocks: Sequence[tuple[str, Layer]], count: int, make: MakePrompts, *, deep: bool) -> None:
    """Puts prompts right behind the class and register tokens, at the input of the first of `blocks` or of each.

    Behind the last block they are removed, so that norm, pooling and head see the tokens they know. Forward hooks do
    all of it: nothing is renamed. Rotary position embeddings are kept off the prompts as off the class token.

    Args:
        model: its blocks get the hooks.
        blocks: the blocks that see prompts with their paths: the model's last ones, from the input on.
        count: number of prompts n.
        make: makes a block's prompts.
        deep: whether each block's prompts take the place of the previous block's outputs at these positions; if not,
            those of the first of `blocks` pass through all.

    Raises:
        UserError: if the backbone's attention has a fixed number of tokens, or another method's prompts are there.
    """
    prefix = model.num_prefix_tokens
    if any(hasattr(block, "prompted") for block in model.blocks):
        raise UserError("it has another method's prompts already; one method of prompts can be used at a time.")
    for path, block in blocks:
        for name, module in block.named_modules(prefix=path):
            if any(getattr(module, bias, None) is not None for bias in ("rel_pos", "relative_position_bias_table")):
                raise UserError(
                    f"'{name}' has a relative position bias for a fixed number of tokens, so no prompts can be added."
                )
            if hasattr(module, "num_prefix_tokens"):
                module.num_prefix_tokens += count

    def first(block: Layer, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_join(args[0], make(block), prefix, behind=prefix), *args[1:])

    def later(block: Layer, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_join(args[0], make(block), prefix, behind=prefix + count), *args[1:])

    def remove(block: Layer, args: tuple[Any, ...], tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((tokens[:, :prefix], tokens[:, prefix + count :]), dim=1)

    for index, (_, block) in enumerate(blocks if deep else blocks[:1]):
        block.prompted = True
        block.register_forward_pre_hook(later if index else first)
    blocks[-1][1].register_forward_hook(remove)


def _join(tokens: torch.Tensor, prompts: torch.Tensor, prefix: int, behind: int) -> torch.Tensor:
    """(B, N, d): the prefix tokens, the prompts (n, d), and the tokens from position `behind` on."""
    expanded = prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    return torch.cat((tokens[:, :prefix], expanded, tokens[:, behind:]), dim=1)
