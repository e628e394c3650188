r"""HRA (Yuan et al. 2024, arXiv:2405.17484): the input reflected r times.

    y = W ∏_i (I - 2 u_i u_iᵀ / ‖u_i‖²) x + b,    U = (u_1 … u_r): (d_in, r)

Pairs of reflections start equal, so that they cancel.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Hra(LinearLayersAndParts):
    """Options of HRA."""

    rank: int = Field(default=4, ge=2, le=1024, multiple_of=2)
    """r, even."""


register(
    tuner_method(
        name="hra",
        summary="a product of Householder reflections",
        paper="Yuan et al. 2024, arXiv:2405.17484",
        config=Hra,
        tuner=lambda config, paths: peft.HRAConfig(r=config.rank, target_modules=paths),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
