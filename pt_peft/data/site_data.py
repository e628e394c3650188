"""A site's images as training and evaluation read them."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, WeightedRandomSampler

from pt_peft.data.cache import cached_images
from pt_peft.data.items import SPLITS, SplitName, targets
from pt_peft.data.sources import site_images
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedAs:
    """Where a split's decoded images lie."""

    entry: Path
    """Their folder in the site's cache."""
    split: SplitName
    limit_gb: float
    """The most that the cache may hold, 10^9 bytes."""


@dataclass(frozen=True)
class Split:
    """The images of one split, in a fixed order."""

    images: np.ndarray
    """uint8 (N,3,S,S), memory-mapped, read-only; or float32 (N,…), what `pt_peft.model.frozen_prefix` makes of them."""
    labels: np.ndarray
    """int64 (N,), indices into ``data.classes``; uint8 (N,C) of zeros and ones where ``data.task`` is ``multilabel``."""
    cached: CachedAs | None = None
    """None for images of other places than the cache."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SiteData:
    """All images of one site. ``val`` and ``test`` may be empty."""

    train: Split
    val: Split
    test: Split


def load_site_data(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteData:
    """Opens the images of the site `name`, decoding them first if its cache lacks them.

    Args:
        names: all sites of the run; what the site gets may depend on the set, never on the order.

    Raises:
        UserError: naming the file, field or row at fault.
    """
    images = site_images(experiment, site, name, names)
    cached = cached_images(site, images, experiment.backbone.image_size)
    classes, multilabel = experiment.data.classes, experiment.data.task == "multilabel"
    if not cached["train"].items:
        raise UserError(f"site {name!r} has no training image that can be read.")
    splits = {}
    for split in SPLITS:
        labels = [item.labels for item in cached[split].items]
        place = CachedAs(cached[split].entry, split, site.cache_gb)
        splits[split] = Split(cached[split].images, targets(labels, len(classes), multilabel), place)
        counts = Counter(label for one in labels for label in one)
        shown = ", ".join(f"{label} {counts[index]}" for index, label in enumerate(classes))
        _logger.info("site %s, %s: %d images (%s)", name, split, len(labels), shown)
    return SiteData(**splits)


def batches(
    split: Split, batch_size: int, *, seed: int | None, augment: tuple[str, ...] = (), weights: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One pass over `split`; the last batch may be short.

    Args:
        seed: shuffles and augments: the same seed gives the same batches, bit for bit. None: in order and as they are.
        augment: names of `pt_peft.data.augmentation.AUGMENTATIONS`.
        weights: (N,), how often each image is drawn, with replacement; None draws each once.

    Yields:
        Images float32 (B,3,S,S) in [0,1], or the split's features as they are, and labels as in `split`.
    """
    dataset = _Batches(split)
    if seed is None:
        sampler, augmentation = SequentialSampler(dataset), None
    else:
        generator = torch.Generator().manual_seed(seed)
        if weights is None:
            sampler = RandomSampler(dataset, generator=generator)
        else:
            sampler = WeightedRandomSampler(weights, len(split), generator=generator)
        augmentation = _augmentation(augment, seed)
    # The loader draws a worker seed even without workers: a generator of its own leaves torch's global one alone.
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=BatchSampler(sampler, batch_size, drop_last=False),
        generator=torch.Generator(),
    )
    for images, labels in loader:
        images = images.float().div_(255) if images.dtype == torch.uint8 else images
        yield (augmentation(images) if augmentation else images), labels


def drawn_batches(
    split: Split, chosen: Iterable[np.ndarray], *, seed: int, augment: tuple[str, ...] = ()
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """As `batches`, of the images whose places in `split` (int64 (B,)) `chosen` gives for each; none is a batch too."""
    augmentation = _augmentation(augment, seed)
    for indices in chosen:
        images = torch.from_numpy(split.images[indices]).float().div_(255)
        yield (augmentation(images) if augmentation else images), torch.from_numpy(split.labels[indices])


class _Batches(Dataset):
    """A split whose items are whole batches: one copy out of the memory map a batch, rather than one an image."""

    def __init__(self, split: Split):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self._split.images[indices]), torch.from_numpy(self._split.labels[indices])


def _augmentation(names: Sequence[str], seed: int):
    if not names:
        return None
    from pt_peft.data.augmentation import Augmentation

    return Augmentation(names, seed)
