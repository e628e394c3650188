r"""VPT-Deep (Jia et al. 2022, arXiv:2203.12119): learned prompt tokens at the input of every block.

    [c_i, _, E_i] = Block_i([c_{i-1}, P_i, E_{i-1}]),    P_i: (n, d)

Each block's prompts take the place of the previous block's outputs at the prompt positions. They start from the paper's
uniform distribution, see `pt_peft.model.prompts.bound`. With ``last_blocks`` they begin at the first of these.
"""

import torch
from pydantic import Field
from torch import nn

from pt_peft.model import prompts
from pt_peft.model.layers import LastBlocks, chosen_blocks
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import ViT


class VptDeep(LastBlocks):
    """Options of VPT-Deep."""

    num_prompts: int = Field(default=10, ge=1, le=1000)
    """n, prompt tokens at each chosen block."""


def inject(model: ViT, config: VptDeep) -> None:
    """Registers ``prompts`` (n, d) on each chosen block."""
    blocks, bound = list(chosen_blocks(model, config)), prompts.bound(model)
    prompts.insert(model, blocks, config.num_prompts, lambda block: block.prompts, deep=True)
    for _, block in blocks:
        block.prompts = nn.Parameter(torch.empty(config.num_prompts, model.embed_dim).uniform_(-bound, bound))


register(
    PeftMethod(
        name="vpt_deep",
        summary="n prompts at every block, each replacing the last block's",
        paper="Jia et al. 2022, arXiv:2203.12119",
        config=VptDeep,
        inject=inject,
        identity_at_start=False,
        merge=None,
        learning_rate=3e-3,
        job=True,
    )
)
