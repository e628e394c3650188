"""The random part of the image pipeline: MONAI transforms, each image's own at random, a batch at a time.

MONAI's own ``Rand*`` transforms take one image a call, which costs 0.8 ms an image at 96 px, as much as a tenth of a
training step of a small ViT. Here all images of a batch that get the same transform go through it in one call.

Importing this module imports MONAI (seconds): import it where images are augmented.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Flip, Randomizable, Rotate90, Transform

from pt_peft.data.untracked import untracked
from pt_peft.data.views import CORNERS, VIEW_OF_VIEW, Drawn, intensified, numbers, view
from pt_peft.seeds import derive_seed


class BatchTransform(Randomizable, Transform):
    """A MONAI transform of a batch, with random numbers of its own."""

    @abstractmethod
    def draw(self, count: int) -> torch.Tensor:
        """Draws what a call with `count` images draws."""

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

    @cached_property
    def views(self) -> torch.Tensor:
        """Number of the view (`pt_peft.data.views`) that each choice makes, int64; the last choice moves nothing."""
        with untracked():
            return numbers(torch.stack([*(move(CORNERS) for move in self.moves), CORNERS]))

    def draw(self, count: int) -> torch.Tensor:
        """Draws each image's choice, int64 (count,)."""
        return torch.as_tensor(self.R.randint(len(self.moves) + 1, size=count))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """See `BatchTransform`."""
        choices = self.draw(len(images))
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

    def draw(self, count: int) -> torch.Tensor:
        """Draws a and b of each image, float32 (2,count,1,1,1)."""
        factors = torch.as_tensor(self.R.uniform(-1, 1, size=(2, count, 1, 1, 1))).float()
        return torch.stack((1 + self._scale * factors[0], self._shift * factors[1]))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """See `BatchTransform`."""
        return intensified(images, self.draw(len(images)))


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
        with untracked():
            for transform in self._transforms:
                images = transform(images)
        return images

    def draw(self, count: int) -> Drawn:
        """Draws for the next `count` images what a call with as many images would."""
        views, intensities = torch.zeros(count, dtype=torch.int64), list[torch.Tensor]()
        for transform in self._transforms:
            drawn = transform.draw(count)
            if isinstance(transform, RandomMove):
                views = VIEW_OF_VIEW[views, transform.views[drawn]]
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
    with untracked():
        for transform in (one for name in names for one in AUGMENTATIONS[name]()):
            if not isinstance(transform, RandomMove):
                return None
            corners = torch.cat([view(CORNERS, number) for number in reached])
            for move in transform.moves:
                reached.update(int(number) for number in numbers(move(corners).unsqueeze(1)))
    return tuple(sorted(reached))
