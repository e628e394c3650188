r"""BOFT (Liu et al. 2023, arXiv:2311.06243): an orthogonal transformation of the weight's output by one butterfly factor.

    y = s ⊙ (R W) x + b,    R orthogonal, of blocks of side c by the Cayley transform,  s: (d_out)

R starts at the identity and s at one. HF peft has further factors only where it can compile a CUDA extension, and leaves them
out without a word elsewhere: sites would then differ in their tensors. Hence one factor everywhere, and no compilation.
"""

import peft
import peft.tuners.boft.layer
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register

peft.tuners.boft.layer._FBD_CUDA = False


class Boft(LinearLayersAndParts):
    block_size: int = Field(default=4, ge=2, le=256, multiple_of=2)
    """c; must divide the layers' output width."""


register(
    tuner_method(
        name="boft",
        summary="orthogonal transformation by a butterfly factor",
        paper="Liu et al. 2023, arXiv:2311.06243",
        config=Boft,
        tuner=lambda config, paths: peft.BOFTConfig(boft_block_size=config.block_size, target_modules=paths),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
