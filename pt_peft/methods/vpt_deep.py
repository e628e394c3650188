r"""VPT-Deep (Jia et al. 2022, arXiv:2203.12119): learned prompt tokens at the input of every block.

    [c_i, _, E_i] = Block_i([c_{i-1}, P_i, E_{i-1}]),    P_i: (n, d)

Each block's prompts take the place of the previous block's outputs at the prompt positions, right behind the class (and
register) tokens; behind the last block they are removed, so that norm, pooling and head see the tokens they know.
Prompts are drawn from U(-v, v) with v = sqrt(6 / (3 p^2 + d)), p the patch's side (the paper's Xavier rule).
"""

import math

import torch
from pydantic import Field
from torch import nn

from pt_peft.method import PeftMethod, register
from pt_peft.schema import Strict


class VptDeep(Strict):
    num_prompts: int = Field(default=10, ge=1, le=1000)
    """n, prompt tokens at each block."""


def inject(model: nn.Module, config: VptDeep) -> None:
    """Registers ``prompts`` (n, d) on each block and hangs them on forward hooks, so that nothing is renamed."""
    prefix, n = model.num_prefix_tokens, config.num_prompts
    bound = math.sqrt(6.0 / (3 * math.prod(model.patch_embed.patch_size) + model.embed_dim))

    def insert(block: nn.Module, args: tuple) -> tuple:
        return (_join(args[0], block.prompts, prefix, behind=prefix), *args[1:])

    def replace(block: nn.Module, args: tuple) -> tuple:
        return (_join(args[0], block.prompts, prefix, behind=prefix + n), *args[1:])

    def remove(block: nn.Module, args: tuple, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((tokens[:, :prefix], tokens[:, prefix + n :]), dim=1)

    for index, block in enumerate(model.blocks):
        block.register_parameter("prompts", nn.Parameter(torch.empty(n, model.embed_dim).uniform_(-bound, bound)))
        block.register_forward_pre_hook(replace if index else insert)
    model.blocks[-1].register_forward_hook(remove)


def _join(tokens: torch.Tensor, prompts: torch.Tensor, prefix: int, behind: int) -> torch.Tensor:
    """(B, N, d): the prefix tokens, the prompts (n, d), and the tokens from position `behind` on."""
    expanded = prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    return torch.cat((tokens[:, :prefix], expanded, tokens[:, behind:]), dim=1)


register(
    PeftMethod(
        name="vpt_deep",
        summary="n prompts at every block, each replacing the last block's",
        paper="Jia et al. 2022, arXiv:2203.12119",
        config=VptDeep,
        inject=inject,
        identity_at_start=False,
        mergeable=False,
        trains_backbone=False,
    )
)
