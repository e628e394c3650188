r"""BOFT (Liu et al. 2023, arXiv:2311.06243): an orthogonal transformation of a layer's output by one butterfly factor.

    y = s ⊙ (R W) x + b,    R orthogonal, of blocks of side c by the Cayley transform,  s: (d_out)

R starts at the identity and s at one. HF PEFT makes further factors only where it can compile a CUDA extension, and
leaves them out elsewhere: sites would differ in their tensors. Hence one factor everywhere, and no compilation.
"""

from dataclasses import replace

import peft
from pydantic import Field

from pt_peft.errors import UserError
from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.library_internals import boft_extension, without_boft_extension
from pt_peft.model.method import register
from pt_peft.model.vit import ViT


class Boft(LinearLayersAndParts):
    """Options of BOFT."""

    block_size: int = Field(default=4, ge=2, le=256, multiple_of=2)
    """c; must divide the layers' output width."""


_tuner = tuner_method(
    name="boft",
    summary="orthogonal transformation by a butterfly factor",
    paper="Liu et al. 2023, arXiv:2311.06243",
    config=Boft,
    tuner=lambda config, paths: peft.BOFTConfig(boft_block_size=config.block_size, target_modules=paths),
    identity_at_start=True,
    learning_rate=1e-2,
)


def inject(model: ViT, config: Boft) -> None:
    """Injects the tuner without its CUDA extension."""
    if boft_extension() is None:
        raise UserError(
            f"HF PEFT {peft.__version__} makes BOFT's CUDA extension in an unknown way; 0.21 would be right."
        )
    with without_boft_extension():
        _tuner.inject(model, config)


register(replace(_tuner, inject=inject))
