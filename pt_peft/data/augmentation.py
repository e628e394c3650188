"""The random part of the image pipeline, as MONAI random transforms.

Importing this module imports MONAI (seconds): import it where images are augmented.
"""

from collections.abc import Callable, Sequence

import torch
from monai.transforms import (
    RandFlip,
    RandomizableTransform,
    RandRotate90,
    RandScaleIntensity,
    RandShiftIntensity,
)

from pt_peft.data.untracked import untracked
from pt_peft.seeds import derive_seed

AUGMENTATIONS: dict[str, Callable[[], Sequence[RandomizableTransform]]] = {
    "flip": lambda: (RandFlip(0.5, spatial_axis=0), RandFlip(0.5, spatial_axis=1)),
    "rotate90": lambda: (RandRotate90(0.5, max_k=3),),
    "intensity": lambda: (RandScaleIntensity(0.2, prob=0.5), RandShiftIntensity(0.1, prob=0.5)),
}
"""The transforms of each ``data.augment`` name: mirror either axis; turn by a multiple of 90 degrees; scale by up to
20 % and shift by up to 0.1."""


class Augmentation:
    """Augments batches; two made with equal arguments give equal results, bit for bit, on equal batches in turn.

    Args:
        names: keys of `AUGMENTATIONS`, applied in that order.
    """

    def __init__(self, names: Sequence[str], seed: int):
        self._transforms = [transform for name in names for transform in AUGMENTATIONS[name]()]
        for index, transform in enumerate(self._transforms):
            transform.set_random_state(derive_seed(seed, "augment", index))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Augments each image of its own. `images`: float32 (B,3,S,S) in [0,1]; so is the result."""
        with untracked():
            return torch.stack([self._augmented(image) for image in images]).clamp_(0, 1)

    def _augmented(self, image: torch.Tensor) -> torch.Tensor:
        for transform in self._transforms:
            image = transform(image)
        return image
