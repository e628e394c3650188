"""The eight views of a square image: what mirroring it and turning it by right angles makes of it.

`pt_peft.data.augmentation` draws a view for each image. What a model's frozen part makes of each view can be computed
once (`pt_peft.data.features`); the draws then only choose among them. Otherwise they move the pixels, on the device
that computes.
"""

from typing import NamedTuple

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


LARGEST = torch.tensor(255.0)
"""Of a pixel. Not a number: a GPU would multiply by its reciprocal, and differ from the CPU in the last bit."""

VIEW_OF_VIEW = torch.stack(
    [numbers(torch.stack([view(view(CORNERS, first), second) for second in range(VIEWS)])) for first in range(VIEWS)]
)
"""Number int64 (8,8) of the view that the second view of an image's first view is, by the two numbers."""


class Drawn(NamedTuple):
    """What augmentation has drawn for the B images of a batch."""

    views: torch.Tensor
    """Number of each image's view, int64 (B,)."""
    intensities: tuple[torch.Tensor, ...]
    """Changes of intensity in turn, each float32 (2,B,1,1,1), see `intensified`."""


def moved(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """The view of each image that `views` numbers. It asks for no value, so that a GPU needs not be waited for.

    Args:
        images: of any dtype, (B,C,S,S).
        views: int64 (B,), on the same device.
    """
    number = views.view(-1, 1, 1, 1)
    images = torch.where(number >= 4, images.flip(-1), images)
    images = torch.where(number % 4 >= 2, images.flip(-1, -2), images)
    return torch.where(number % 2 == 1, torch.rot90(images, 1, (-2, -1)), images)


def augmented(pixels: torch.Tensor, drawn: Drawn | None, largest: torch.Tensor = LARGEST) -> torch.Tensor:
    """Images float32 (B,3,S,S) in [0,1] of `pixels` uint8 (B,3,S,S).

    Args:
        pixels: of the images.
        drawn: what is applied to them, on the same device; None for nothing.
        largest: `LARGEST` on that device.
    """
    if drawn:
        pixels = moved(pixels, drawn.views)
    images = pixels.float().div_(largest)
    for intensity in drawn.intensities if drawn else ():
        images = intensified(images, intensity)
    return images


def intensified(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Maps x → clip(a·x + b, 0, 1) for each image float32 (B,3,S,S), with (a, b) in `drawn`, float32 (2,B,1,1,1)."""
    return (images * drawn[0] + drawn[1]).clamp_(0, 1)
