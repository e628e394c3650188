r"""Norm tuning: scale and shift of all layer norms train (for ViTs: Basu et al. 2023, arXiv:2304.01492).

    y = γ ⊙ (x - mean(x)) / std(x) + β,    γ, β: (d)

An RMS norm has γ alone.
"""

from timm.layers.norm import RmsNorm, SimpleNorm
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.method import PeftMethod, nothing_to_merge, register
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict


class Norm(Strict):
    """Takes no options."""


def inject(model: ViT, config: Norm) -> None:
    """Marks the tensors of all norms, also of those inside attention and MLP."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.LayerNorm, nn.RMSNorm, RmsNorm, SimpleNorm))]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    if not parameters:
        raise UserError("its norms have no tensors.")
    for parameter in parameters:
        parameter.requires_grad_(True)


register(
    PeftMethod(
        name="norm",
        summary="scale and shift of all layer norms",
        paper="Basu et al. 2023, arXiv:2304.01492",
        config=Norm,
        inject=inject,
        identity_at_start=True,
        merge=nothing_to_merge,
        learning_rate=1e-2,
        trains_backbone=True,
        job=True,
    )
)
