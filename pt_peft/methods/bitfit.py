"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199): the biases of all layers train.

    y = W x + b,    b: (d_out)

The β of every norm trains too.
"""

from pt_peft.errors import UserError
from pt_peft.model.method import PeftMethod, nothing_to_merge, register
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict


class BitFit(Strict):
    """Takes no options."""


def inject(model: ViT, config: BitFit) -> None:
    """Marks the biases of the patch embedding, attention, MLPs and norms; ``q_bias`` and ``v_bias`` of EVA too."""
    head = set(model.get_classifier().parameters())
    biases = [
        parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in ("bias", "q_bias", "k_bias", "v_bias") and parameter not in head
    ]
    if not biases:
        raise UserError("its layers have no biases.")
    for bias in biases:
        bias.requires_grad_(True)


register(
    PeftMethod(
        name="bitfit",
        summary="all biases",
        paper="Ben Zaken et al. 2021, arXiv:2106.10199",
        config=BitFit,
        inject=inject,
        identity_at_start=True,
        merge=nothing_to_merge,
        learning_rate=1e-2,
        trains_backbone=True,
        job=True,
    )
)
