"""The random part of the image pipeline: MONAI transforms, each image's own at random, a batch at a time.

MONAI's own ``Rand*`` transforms take one image a call, which costs 0.8 ms an image at 96 px, as much as a tenth of a
training step of a small ViT. Here all images of a batch that get the same transform go through it in one call.

Importing this module imports MONAI (seconds): import it where images are augmented.
"""

from collections.abc import Callable, Sequence

import torch
from monai.transforms import Flip, Randomizable, Rotate90, Transform

from pt_peft.data.untracked import untracked
from pt_peft.seeds import derive_seed


class RandomMove(Randomizable, Transform):
    """Moves the pixels of each image by one of `moves`, or leaves it, all equally likely.

    Args:
        moves: deterministic transforms of (channels,S,S) that treat channels alike.
    """

    def __init__(self, *moves: Transform):
        self._moves = moves

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B,3,S,S) → (B,3,S,S)."""
        choices = torch.from_numpy(self.R.randint(len(self._moves) + 1, size=len(images)))
        moved = images.clone()
        for index, move in enumerate(self._moves):
            chosen = choices == index
            if chosen.any():
                as_channels = images[chosen].flatten(0, 1)
                moved[chosen] = move(as_channels).unflatten(0, (-1, images.shape[1]))
        return moved


class RandomIntensity(Randomizable, Transform):
    """x → clip(a·x + b, 0, 1) for each image, with a uniform in 1 ± `scale` and b uniform in ± `shift`."""

    def __init__(self, scale: float, shift: float):
        self._scale = scale
        self._shift = shift

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B,3,S,S) in [0,1] → (B,3,S,S) in [0,1]."""
        factors = torch.from_numpy(self.R.uniform(-1, 1, size=(2, len(images), 1, 1, 1))).to(images)
        return (images * (1 + self._scale * factors[0]) + self._shift * factors[1]).clamp_(0, 1)


AUGMENTATIONS: dict[str, Callable[[], Sequence[Randomizable]]] = {
    "flip": lambda: (RandomMove(Flip(0)), RandomMove(Flip(1))),
    "rotate90": lambda: (RandomMove(Rotate90(1), Rotate90(2), Rotate90(3)),),
    "intensity": lambda: (RandomIntensity(scale=0.2, shift=0.1),),
}
"""The transforms of each ``data.augment`` name."""


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
        """`images`: float32 (B,3,S,S) in [0,1], not changed; so is the result."""
        with untracked():
            for transform in self._transforms:
                images = transform(images)
        return images
