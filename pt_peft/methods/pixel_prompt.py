r"""Visual prompting at the pixels (Bahng et al. 2022, arXiv:2203.17274): a learned frame is added to every image.

    x → x + δ,    δ: (3, S, S), zero but for a frame of p pixels, 2 · 3 · p (2 S - 2 p) numbers

δ is added behind the normalisation. The paper draws it from N(0, 1); here it starts at zero, so that the logits are
unchanged at the start. Its gradient goes through the whole backbone.
"""

import torch
from pydantic import Field
from torch import nn

from pt_peft.errors import UserError
from pt_peft.model.method import PeftMethod, register
from pt_peft.model.vit import Layer, ViT
from pt_peft.schema import Strict


class PixelPrompt(Strict):
    """Options of the visual prompt."""

    padding: int | None = Field(default=None, ge=1, le=500)
    """p, pixels; null: the paper's share of the side, 30 / 224."""


def inject(model: ViT, config: PixelPrompt) -> None:
    """Registers the frame on the patch embedding.

    Its rows at top and bottom are ``frame_rows`` (2, 3, p, S), its columns at left and right ``frame_columns``
    (2, 3, S - 2p, p).
    """
    height, width = model.patch_embed.img_size or (0, 0)
    p = config.padding or round(width * 30 / 224)
    if height != width or not 0 < 2 * p < width:
        raise UserError(
            f"field 'padding' is {p}, but its images are of {height} x {width} pixels; a frame needs less than half."
        )
    model.patch_embed.frame_rows = nn.Parameter(torch.zeros(2, 3, p, width))
    model.patch_embed.frame_columns = nn.Parameter(torch.zeros(2, 3, width - 2 * p, p))
    model.patch_embed.register_forward_pre_hook(_add)


def _add(embed: Layer, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (top, bottom), (left, right) = embed.frame_rows, embed.frame_columns
    inner = left.shape[1]
    middle = torch.cat((left, left.new_zeros(3, inner, inner), right), dim=2)
    return (args[0] + torch.cat((top, middle, bottom), dim=1).to(args[0].dtype), *args[1:])


register(
    PeftMethod(
        name="pixel_prompt",
        summary="a learned frame added to every image",
        paper="Bahng et al. 2022, arXiv:2203.17274",
        config=PixelPrompt,
        inject=inject,
        identity_at_start=True,
        merge=None,
        learning_rate=1e-2,
    )
)
