"""The eight views of a square image: what mirroring it and turning it by right angles makes of it.

`pt_peft.data.augmentation` draws views by moving pixels. What a model's frozen part makes of each view can be computed
once (`pt_peft.data.features`); the draws then only choose among them.
"""

import torch

VIEWS = 8
"""The symmetries of the square."""


def view(images: torch.Tensor, number: int) -> torch.Tensor:
    """One view of `images` (…,S,S).

    Args:
        images: of any dtype.
        number: 0 to 7. The image is mirrored left to right from 4 on, then turned anticlockwise by ``number % 4`` right
            angles; 0 is the image itself.
    """
    return torch.rot90(images.flip(-1) if number >= 4 else images, number % 4, (-2, -1))


CORNERS = torch.arange(4.0).reshape(1, 2, 2)
"""An image (1,2,2) of which no two views are alike: it shows what moved it."""
_SEEN = torch.cat([view(CORNERS, number) for number in range(VIEWS)])


def numbers(corners: torch.Tensor) -> torch.Tensor:
    """Numbers int64 (B,) of the views of `CORNERS` that are in `corners` (B,1,2,2)."""
    return (corners == _SEEN).flatten(2).all(dim=2).int().argmax(dim=1)
