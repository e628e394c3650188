"""Prompt tokens in the blocks of a timm ViT."""

import math
from collections.abc import Callable

import torch
from timm.layers import to_2tuple
from torch import nn

from pt_peft.errors import UserError

Make = Callable[[nn.Module], torch.Tensor]
"""Takes a block and returns its prompts (n, d). Must refer to nothing but its argument, so that a copy of the model works."""


def bound(model: nn.Module) -> float:
    """V of the uniform distribution U(-v, v) of prompts at the start: sqrt(6 / (3 p^2 + d)), p the patch's side in pixels
    (Jia et al. 2022, their Xavier rule).
    """
    return math.sqrt(6.0 / (3 * math.prod(to_2tuple(model.patch_embed.patch_size)) + model.embed_dim))


def insert(model: nn.Module, count: int, make: Make, *, deep: bool) -> None:
    """Puts `count` prompts right behind the class (and register) tokens, at the input of the first block, or of every block.

    With `deep` each block's prompts take the place of the previous block's outputs at these positions, else those stay.
    Behind the last block they are removed, so that norm, pooling and head see the tokens they know. All by forward hooks:
    nothing is renamed. Rotary position embeddings are kept off the prompts as off the class token.

    Raises:
        UserError: if the backbone's attention knows a fixed number of tokens only, or has prompts already.
    """
    prefix = model.num_prefix_tokens
    if any(hasattr(block, "prompted") for block in model.blocks):
        raise UserError("it has another method's prompts already; one method of prompts can be used at a time.")
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if (
            getattr(module, "rel_pos", None) is not None
            or getattr(module, "relative_position_bias_table", None) is not None
        ):
            raise UserError(
                f"'{name}' has a relative position bias for a fixed number of tokens, so no prompts can be added."
            )
        if hasattr(module, "num_prefix_tokens"):
            module.num_prefix_tokens += count

    def first(block: nn.Module, args: tuple) -> tuple:
        return (_join(args[0], make(block), prefix, behind=prefix), *args[1:])

    def later(block: nn.Module, args: tuple) -> tuple:
        return (_join(args[0], make(block), prefix, behind=prefix + count), *args[1:])

    def remove(block: nn.Module, args: tuple, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((tokens[:, :prefix], tokens[:, prefix + count :]), dim=1)

    for index, block in enumerate(model.blocks if deep else model.blocks[:1]):
        block.prompted = True
        block.register_forward_pre_hook(later if index else first)
    model.blocks[-1].register_forward_hook(remove)


def _join(tokens: torch.Tensor, prompts: torch.Tensor, prefix: int, behind: int) -> torch.Tensor:
    """(B, N, d): the prefix tokens, the prompts (n, d), and the tokens from position `behind` on."""
    expanded = prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    return torch.cat((tokens[:, :prefix], expanded, tokens[:, behind:]), dim=1)
