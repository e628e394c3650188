r"""VPT-Shallow (Jia et al. 2022, arXiv:2203.12119): learned prompt tokens at the input of the first block.

    [c_1, Z_1, E_1] = Block_1([c_0, P, E_0]),    [c_i, Z_i, E_i] = Block_i([c_{i-1}, Z_{i-1}, E_{i-1}]),    P: (n, d)

c is the class token, E the patch tokens and Z what the blocks make of the prompts P.
"""

import torch
from pydantic import Field
from torch import nn

from pt_peft.model import prompts
from pt_peft.model.layers import LastBlocks, chosen_blocks
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict


class VptShallow(Strict):
    """Options of VPT-Shallow."""

    num_prompts: int = Field(default=10, ge=1, le=1000)
    """n, prompt tokens."""


def inject(model: ViT, config: VptShallow) -> None:
    """Registers ``prompts`` (n, d) on the first block."""
    blocks = list(chosen_blocks(model, LastBlocks()))
    prompts.insert(model, blocks, config.num_prompts, lambda block: block.prompts, deep=False)
    bound = prompts.bound(model)
    model.blocks[0].prompts = nn.Parameter(torch.empty(config.num_prompts, model.embed_dim).uniform_(-bound, bound))


register(
    PeftMethod(
        name="vpt_shallow",
        summary="n prompts at the input of the first block",
        paper="Jia et al. 2022, arXiv:2203.12119",
        config=VptShallow,
        inject=inject,
        identity_at_start=False,
        merge=None,
        learning_rate=3e-2,
        job=True,
    )
)
