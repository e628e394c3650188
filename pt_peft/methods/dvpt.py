r"""Decomposed deep prompts (Alkhunaizi et al. 2024): the prompts of every block as a product of two thin matrices.

    P_i = A_i B_i,    A_i: (n, r),  B_i: (r, d),    r (n + d) numbers a block instead of n d

The prompts act as those of VPT-Deep. A starts from N(0, 1/r) and B from U(-v, v) with VPT's v, which gives each prompt
the variance that VPT's prompts start with.
"""

import math

import torch
from pydantic import Field
from torch import nn

from pt_peft.model import prompts
from pt_peft.model.layers import LastBlocks, chosen_blocks
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import ViT


class Dvpt(LastBlocks):
    """Options of the decomposed deep prompts."""

    num_prompts: int = Field(default=10, ge=1, le=1000)
    """n, prompt tokens at each chosen block."""
    rank: int = Field(default=2, ge=1, le=1000)
    """r; saves numbers below n d / (n + d)."""


def inject(model: ViT, config: Dvpt) -> None:
    """Registers ``prompts_A`` (n, r) and ``prompts_B`` (r, d) on each chosen block."""
    blocks, bound = list(chosen_blocks(model, config)), prompts.bound(model)
    prompts.insert(model, blocks, config.num_prompts, lambda block: block.prompts_A @ block.prompts_B, deep=True)
    for _, block in blocks:
        block.prompts_A = nn.Parameter(torch.randn(config.num_prompts, config.rank) / math.sqrt(config.rank))
        block.prompts_B = nn.Parameter(torch.empty(config.rank, model.embed_dim).uniform_(-bound, bound))


register(
    PeftMethod(
        name="dvpt",
        summary="deep prompts as a product of rank r",
        paper="Alkhunaizi et al. 2024, doi:10.1007/978-3-031-77610-6_22",
        config=Dvpt,
        inject=inject,
        identity_at_start=False,
        merge=None,
        learning_rate=3e-3,
        job=True,
    )
)
