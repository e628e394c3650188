r"""Adapters (Houlsby et al. 2019, arXiv:1902.00751): a bottleneck behind the attention and behind the MLP of every block.

    h → h + GELU(h D) U,    h the sublayer's output before it joins the residual,    D: (d, r) and U: (r, d) with biases

U starts at zero.
"""

from pydantic import Field
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.layers import Bottleneck, LastBlocks, chosen_blocks
from pt_peft.model.method import PeftMethod, register


class Houlsby(LastBlocks):
    rank: int = Field(default=8, ge=1, le=4096)
    """r, width of the bottlenecks."""


def inject(model: nn.Module, config: Houlsby) -> None:
    """Registers ``houlsby`` on the attention and the MLP of each chosen block."""
    for path, block in chosen_blocks(model, config):
        for name in ("attn", "mlp"):
            sublayer = getattr(block, name, None)
            if not isinstance(sublayer, nn.Module):
                raise UserError(f"'{path}' has no sublayer of the name '{name}'.")
            sublayer.houlsby = Bottleneck(model.embed_dim, config.rank, nn.GELU())
            sublayer.register_forward_hook(_add)


def _add(sublayer: nn.Module, args: tuple, output):
    return output + sublayer.houlsby(output)


register(
    PeftMethod(
        name="houlsby",
        summary="a bottleneck behind every attention and MLP",
        paper="Houlsby et al. 2019, arXiv:1902.00751",
        config=Houlsby,
        inject=inject,
        identity_at_start=True,
        merge=None,
        learning_rate=1e-2,
    )
)
