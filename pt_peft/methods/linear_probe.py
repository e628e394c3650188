"""Linear probe (Alain and Bengio 2016, arXiv:1610.01644): the head alone trains, on the frozen backbone's features.

    logits = W f(x) + b,    W: (K, d),  b: (K)

f(x) are the pooled features of width d, K the number of classes.
"""

from pt_peft.model.method import PeftMethod, nothing_to_merge, register
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict


class LinearProbe(Strict):
    """Takes no options."""


def inject(model: ViT, config: LinearProbe) -> None:
    """Adds nothing: the head trains with every method."""


register(
    PeftMethod(
        name="linear_probe",
        summary="the head only",
        paper="Alain and Bengio 2016, arXiv:1610.01644",
        config=LinearProbe,
        inject=inject,
        identity_at_start=True,
        merge=nothing_to_merge,
        learning_rate=3e-2,
        job=True,
    )
)
