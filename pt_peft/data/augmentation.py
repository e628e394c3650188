"""The random part of the image pipeline: what each image of a batch draws, all images in one call.

Draws are made on the CPU; the device that computes applies them (`pt_peft.data.views.augmented`). The moves are those
of MONAI's ``Flip`` and ``Rotate90``, as a test shows bit for bit. MONAI's ``Rand*`` transforms take one image a call,
0.8 ms at 96 px, as much as a tenth of a training step of a small ViT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pt_peft.data.views import VIEW_OF_VIEW, Drawn
from pt_peft.seeds import derive_seed


@dataclass(frozen=True)
class RandomMove:
    """Gives each image one of `views`, each equally likely."""

    views: tuple[int, ...]
    """Numbers, see `pt_peft.data.views.view`."""

    def draw(self, random: np.random.RandomState, count: int) -> torch.Tensor:
        """Draws the views of `count` images, int64 (count,)."""
        return torch.tensor(self.views)[random.randint(len(self.views), size=count)]


@dataclass(frozen=True)
class RandomIntensity:
    """x → clip(a·x + b, 0, 1) for each image, with a uniform in 1 ± `scale` and b uniform in ± `shift`."""

    scale: float
    shift: float

    def draw(self, random: np.random.RandomState, count: int) -> torch.Tensor:
        """Draws a and b of `count` images, float32 (2,count,1,1,1)."""
        factors = torch.as_tensor(random.uniform(-1, 1, size=(2, count, 1, 1, 1))).float()
        return torch.stack((1 + self.scale * factors[0], self.shift * factors[1]))


AUGMENTATIONS: dict[str, tuple[RandomMove | RandomIntensity, ...]] = {
    "flip": (RandomMove((6, 0)), RandomMove((4, 0))),  # upside down, then left to right
    "rotate90": (RandomMove((1, 2, 3, 0)),),
    "intensity": (RandomIntensity(scale=0.2, shift=0.1),),
}
"""What each ``data.augment`` name draws, in turn."""


class Augmentation:
    """Draws for one batch after the other; two with equal arguments draw the same.

    Args:
        names: keys of `AUGMENTATIONS`, applied in that order.
        seed: of all random numbers.
    """

    def __init__(self, names: Sequence[str], seed: int):
        transforms = [transform for name in names for transform in AUGMENTATIONS[name]]
        self._transforms = [
            (transform, np.random.RandomState(derive_seed(seed, "augment", index)))
            for index, transform in enumerate(transforms)
        ]

    def draw(self, count: int) -> Drawn:
        """Draws for the next `count` images."""
        views, intensities = torch.zeros(count, dtype=torch.int64), list[torch.Tensor]()
        for transform, random in self._transforms:
            drawn = transform.draw(random, count)
            if isinstance(transform, RandomMove):
                views = VIEW_OF_VIEW[views, drawn]
            else:
                intensities.append(drawn)
        return Drawn(views, tuple(intensities))

    def views(self, count: int) -> npt.NDArray[np.int64]:
        """The views that `draw` gives the next `count` images, int64 (count,)."""
        return self.draw(count).views.numpy()


def views_of(names: Sequence[str]) -> tuple[int, ...] | None:
    """Numbers of all views that `Augmentation` may give an image, ascending; None if it also changes pixels' values.

    Args:
        names: keys of `AUGMENTATIONS`; without any the image itself is the only view.
    """
    reached = {0}
    for transform in (one for name in names for one in AUGMENTATIONS[name]):
        if not isinstance(transform, RandomMove):
            return None
        reached = {int(VIEW_OF_VIEW[first, second]) for first in reached for second in transform.views}
    return tuple(sorted(reached))
