"""The random part of the image pipeline: each image's own transforms at random, a batch at a time.

MONAI's ``Rand*`` transforms take one image a call, which costs 0.8 ms an image at 96 px, as much as a tenth of a
training step of a small ViT. Here all images of a batch that get the same transform go through it in one call. Training
does without MONAI, whose import takes as long as torch's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pt_peft.data.moves import Flip, Rotate90
from pt_peft.data.views import CORNERS, numbers, view
from pt_peft.seeds import derive_seed


class BatchTransform(ABC):
    """A transform of a batch, with random numbers of its own.

    Attributes:
        R: draws them, once `set_random_state` was called.
    """

    def set_random_state(self, seed: int) -> None:
        """Starts the draws anew from `seed`, 0 to 2^32 - 1."""
        self.R = np.random.RandomState(seed)

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps float32 (B,3,S,S) in [0,1] to the same."""


class RandomMove(BatchTransform):
    """Moves the pixels of each image by one of `moves`, or not at all, each equally likely.

    Attributes:
        moves: deterministic transforms of (channels,S,S) that treat channels alike.
    """

    def __init__(self, *moves: Flip | Rotate90):
        """See the attributes."""
        self.moves = moves

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """See `BatchTransform`."""
        choices = torch.as_tensor(self.R.randint(len(self.moves) + 1, size=len(images)))
        moved = images.clone()
        for index, move in enumerate(self.moves):
            chosen = choices == index
            if chosen.any():
                selected = images[chosen]
                moved[chosen] = move(selected.flatten(0, 1)).reshape(selected.shape)
        return moved


class RandomIntensity(BatchTransform):
    """x → clip(a·x + b, 0, 1) for each image, with a uniform in 1 ± `scale` and b uniform in ± `shift`."""

    def __init__(self, scale: float, shift: float):
        self._scale = scale
        self._shift = shift

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """See `BatchTransform`."""
        factors = torch.as_tensor(self.R.uniform(-1, 1, size=(2, len(images), 1, 1, 1))).to(images)
        return (images * (1 + self._scale * factors[0]) + self._shift * factors[1]).clamp_(0, 1)


AUGMENTATIONS: dict[str, Callable[[], Sequence[BatchTransform]]] = {
    "flip": lambda: (RandomMove(Flip(0)), RandomMove(Flip(1))),
    "rotate90": lambda: (RandomMove(Rotate90(1), Rotate90(2), Rotate90(3)),),
    "intensity": lambda: (RandomIntensity(scale=0.2, shift=0.1),),
}
"""The transforms of each ``data.augment`` name."""


class Augmentation:
    """Augments batches; two with equal arguments give equal results, bit for bit, on equal batches in turn.

    Args:
        names: keys of `AUGMENTATIONS`, applied in that order.
        seed: of all random numbers.
    """

    def __init__(self, names: Sequence[str], seed: int):
        self._transforms = [transform for name in names for transform in AUGMENTATIONS[name]()]
        for index, transform in enumerate(self._transforms):
            transform.set_random_state(derive_seed(seed, "augment", index))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps float32 (B,3,S,S) in [0,1] to new images of the same kind."""
        for transform in self._transforms:
            images = transform(images)
        return images

    def views(self, count: int) -> npt.NDArray[np.int64]:
        """Draws the views (`pt_peft.data.views`) that the next `count` images get, int64 (count,).

        The draws are those that a call with as many images makes. All transforms must be moves, see `views_of`.
        """
        return numbers(self(CORNERS.expand(count, -1, -1, -1))).numpy()


def views_of(names: Sequence[str]) -> tuple[int, ...] | None:
    """Numbers of all views that `Augmentation` may give an image, ascending; None if it also changes pixels' values.

    Args:
        names: keys of `AUGMENTATIONS`; without any the image itself is the only view.
    """
    reached = {0}
    for transform in (one for name in names for one in AUGMENTATIONS[name]()):
        if not isinstance(transform, RandomMove):
            return None
        corners = torch.cat([view(CORNERS, number) for number in reached])
        for move in transform.moves:
            reached.update(int(number) for number in numbers(move(corners).unsqueeze(1)))
    return tuple(sorted(reached))
