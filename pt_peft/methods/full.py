"""Full fine-tuning: every tensor of the backbone trains, as in FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""

from pt_peft.model.method import PeftMethod, nothing_to_merge, register
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict


class Full(Strict):
    """Takes no options."""


def inject(model: ViT, config: Full) -> None:
    """Marks all that is not the head."""
    head = set(model.get_classifier().parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter not in head)


register(
    PeftMethod(
        name="full",
        summary="every tensor of the backbone",
        paper="McMahan et al. 2017, arXiv:1602.05629",
        config=Full,
        inject=inject,
        identity_at_start=True,
        merge=nothing_to_merge,
        learning_rate=3e-4,
        trains_backbone=True,
        job=True,
    )
)
