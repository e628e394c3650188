r"""SSF (Lian et al. 2022, arXiv:2210.08823): every operation's output is scaled and shifted, channel by channel.

    y = γ ⊙ op(x) + β,    γ, β: (d_out)

Behind the patch embedding, behind the norms, projections and MLP layers of every block, and behind the final norm.
The paper draws γ from N(1, 0.02²) and β from N(0, 0.02²); here they start at one and zero, so that the logits are
unchanged at the start.
"""

from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.layers import NAMES
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import Layer, ViT
from pt_peft.schema import Strict

_NORMS = ("norm", "norm1", "norm2", "fc_norm", "norm_pre")
_OPERATIONS = (*_NORMS, *(name for names in NAMES.values() for name in names))


class Ssf(Strict):
    """Takes no options."""


def inject(model: ViT, config: Ssf) -> None:
    """Registers γ as ``ssf_scale`` and β as ``ssf_shift`` on each operation, and the hook that applies them."""
    operations: list[Layer] = [model.patch_embed.proj]
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in _OPERATIONS and not path.startswith(("patch_embed.", "attn_pool.")):
            operations.append(cast(Layer, module.get_base_layer()) if isinstance(module, BaseTunerLayer) else module)
    for operation in operations:
        weight = getattr(operation, "weight", None)
        if weight is None:
            continue  # an identity in the place of a norm
        width = weight.shape[0]
        operation.ssf_scale = nn.Parameter(weight.new_ones(width))
        operation.ssf_shift = nn.Parameter(weight.new_zeros(width))
        operation.ssf_hook = operation.register_forward_hook(_scale_and_shift)


def _scale_and_shift(operation: Layer, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    scale, shift = operation.ssf_scale, operation.ssf_shift
    if isinstance(operation, nn.Conv2d):  # channels come second
        scale, shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
    return output * scale + shift


@torch.no_grad()
def merge(model: ViT) -> None:
    """W → γ W and b → γ b + β.

    Raises:
        UserError: if β would need a bias that the backbone does not have.
    """
    for path, operation in model.named_modules():
        if not hasattr(operation, "ssf_scale"):
            continue
        scale, shift = operation.ssf_scale, operation.ssf_shift
        if getattr(operation, "bias", None) is not None:
            operation.bias.copy_(operation.bias * scale + shift)
        elif shift.abs().max() > 0:
            raise UserError(f"cannot be merged: ssf shifts the output of '{path}', which has no bias.")
        operation.weight.mul_(scale.view(-1, *[1] * (operation.weight.ndim - 1)))
        operation.ssf_hook.remove()
        del operation.ssf_scale, operation.ssf_shift, operation.ssf_hook


register(
    PeftMethod(
        name="ssf",
        summary="scale and shift behind every operation",
        paper="Lian et al. 2022, arXiv:2210.08823",
        config=Ssf,
        inject=inject,
        identity_at_start=True,
        merge=merge,
        learning_rate=3e-3,
    )
)
