r"""Stochastic block attention (Alkhunaizi et al. 2024): in each round the attention of k randomly drawn blocks trains.

    round t: θ_i → θ_i + Δθ_i for i in S_t,  |S_t| = k,    θ_i = (W_qkv, b_qkv, W_proj, b_proj) of block i

Only the tensors of S_t travel in round t; those of earlier rounds keep their aggregated values. S_t is a pure function
of the experiment's seed and t, through SHA-256 alone: server and sites agree on any machine without a message. It has
the k blocks of smallest -log(u_i) / w_i, u_i uniform (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).
"""

import math
from typing import Literal

from pydantic import Field

from pt_peft.errors import UserError
from pt_peft.model.method import PeftMethod, nothing_to_merge, register
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict
from pt_peft.seeds import derive_seed


class Sba(Strict):
    """Options of Stochastic block attention."""

    blocks_per_round: int = Field(default=1, ge=1, le=1000)
    """k, at most the number of blocks."""
    draw: Literal["uniform", "without_replacement", "depth_weighted"] = "uniform"
    """``uniform``: all blocks alike, anew in every round. ``without_replacement``: a block comes again only after all
    others have (where k does not divide the depth, a turn's last round is filled up from its first blocks).
    ``depth_weighted``: block i of 1 … L has weight i, so that late blocks come more often."""


def inject(model: ViT, config: Sba) -> None:
    """Marks the attention of every block: each of them may be drawn."""
    if config.blocks_per_round > len(model.blocks):
        raise UserError(
            f"field 'blocks_per_round' is {config.blocks_per_round}, but it has {len(model.blocks)} blocks."
        )
    for block in model.blocks:
        if not hasattr(block, "attn"):
            raise UserError("its blocks have no attention of the name 'attn'.")
        for parameter in block.attn.parameters():
            parameter.requires_grad_(True)


def drawn_blocks(depth: int, config: Sba, seed: int, round_number: int) -> list[int]:
    """S_t for t = `round_number`: k distinct blocks of 0 … `depth` - 1, in ascending order."""
    k = config.blocks_per_round
    if config.draw == "without_replacement":
        turn, place = divmod(round_number, math.ceil(depth / k))
        order = _order(depth, [1.0] * depth, seed, "turn", turn)
        return sorted(order[(place * k + offset) % depth] for offset in range(k))
    weights = [1.0 + block if config.draw == "depth_weighted" else 1.0 for block in range(depth)]
    return sorted(_order(depth, weights, seed, "round", round_number)[:k])


def round_keys(keys: list[str], config: Sba, seed: int, round_number: int) -> set[str]:
    """Those of all blocks' `keys` (``blocks.<i>.attn.…``) that are of the drawn blocks."""
    blocks = [int(key.split(".")[1]) for key in keys]
    drawn = set(drawn_blocks(max(blocks) + 1, config, seed, round_number))
    return {key for key, block in zip(keys, blocks, strict=True) if block in drawn}


def _order(depth: int, weights: list[float], seed: int, unit: str, number: int) -> list[int]:
    def priority(block: int) -> float:
        uniform = (derive_seed(seed, "stochastic block attention", unit, number, block) + 1) / 2**32
        return -math.log(uniform) / weights[block]

    return sorted(range(depth), key=priority)


register(
    PeftMethod(
        name="sba",
        summary="attention of k randomly drawn blocks a round",
        paper="Alkhunaizi et al. 2024, doi:10.1007/978-3-031-77610-6_22",
        config=Sba,
        inject=inject,
        identity_at_start=True,
        merge=nothing_to_merge,
        learning_rate=3e-3,
        trains_backbone=True,
        round_keys=round_keys,
        job=True,
    )
)
