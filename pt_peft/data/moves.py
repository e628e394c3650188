"""Moves of an image's pixels, those of MONAI's ``Flip`` and ``Rotate90`` without its seconds of imports."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Flip:
    """Mirrors along a spatial axis: 0 turns it upside down, 1 swaps left and right."""

    axis: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (C,H,W) to the same."""
        return torch.flip(images, (self.axis + 1,))


@dataclass(frozen=True)
class Rotate90:
    """Turns by right angles, from the first spatial axis towards the second."""

    turns: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (C,H,W) to (C,H,W) or (C,W,H)."""
        return torch.rot90(images, self.turns, (1, 2))
