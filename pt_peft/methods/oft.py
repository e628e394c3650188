r"""OFT (Qiu et al. 2023, arXiv:2306.07280): an orthogonal transformation of the weight, block by block.

    y = W R x + b,    R = blockdiag(R_1 … R_{d_in / s}),    R_i = (I + Q_i)(I - Q_i)⁻¹,    Q_i: (s, s) skew-symmetric

with the exact Cayley transform and s (s - 1) / 2 numbers in each Q_i, which starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Oft(LinearLayersAndParts):
    """Options of OFT."""

    block_size: int = Field(default=16, ge=2, le=1024)
    """s; must divide the layers' input width."""


register(
    tuner_method(
        name="oft",
        summary="block-wise orthogonal transformation of the weight",
        paper="Qiu et al. 2023, arXiv:2306.07280",
        config=Oft,
        tuner=lambda config, paths: peft.OFTConfig(
            r=0, oft_block_size=config.block_size, use_cayley_neumann=False, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=3e-3,
    )
)
