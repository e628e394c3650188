"""A site's images as training and evaluation read them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, WeightedRandomSampler

from pt_peft import reasons
from pt_peft.data.augmentation import Augmentation
from pt_peft.data.cache import cached_images
from pt_peft.data.items import Labels, SplitName, split_counts, targets
from pt_peft.data.sources import site_images
from pt_peft.data.views import augmented
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.torch_random import generator

if TYPE_CHECKING:
    from pt_peft.data.device_batches import DeviceSplits

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
class ImageSplit:
    """The images of one split, in a fixed order."""

    images: npt.NDArray[np.uint8]
    """uint8 (N,3,S,S); memory-mapped and read-only if they come from the cache."""
    labels: Labels
    """int64 (N,), indices into ``data.classes``; for ``multilabel`` uint8 (N,C): 1, 0 or, in training images alone,
    `pt_peft.data.items.NOT_KNOWN`."""
    cached: CachedAs | None = None
    """None for images that do not come from the cache."""
    groups: tuple[str, ...] = ()
    """Each image's group in its source, see `pt_peft.data.items.Item`; empty where it is not known."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FeatureSplit:
    """The features of one split, which the frozen part of the model computes from its images; in the same order."""

    features: npt.NDArray[np.float32] | npt.NDArray[np.float16]
    """(N,V,…) of the images' views, see `pt_peft.model.frozen_prefix`; memory-mapped and read-only."""
    views: tuple[int, ...]
    """Numbers of the V views, ascending, see `pt_peft.data.views`."""
    labels: Labels
    """The labels of the images, see `ImageSplit`."""
    entry: Path | None = None
    """Their folder in the site's cache, whose name stands for all that they depend on; None if they are not from it."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SiteData:
    """All images of one site. ``val`` and ``test`` may be empty."""

    train: ImageSplit
    val: ImageSplit
    test: ImageSplit


def load_site_data(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteData:
    """Opens the images of the site `name`, decoding them first if its cache lacks them.

    Args:
        experiment: what the images are and how they are partitioned.
        site: where the images and the cache lie.
        name: the site's name.
        names: all sites of the run; the site's share may depend on the set, never on the order.

    Raises:
        UserError: naming the file, field or row at fault.
    """
    site = site.at(name, names)
    images = site_images(experiment, site, name, names)
    cached = cached_images(site, images, experiment.preprocessing.decoding)
    if not cached["train"].items:
        raise UserError(f"site {name!r} has no training image that can be read.").told_as(reasons.NoImages())
    classes, multilabel = experiment.data.classes, experiment.data.task == "multilabel"

    def opened(split: SplitName) -> ImageSplit:
        one = cached[split]
        labels = targets(one.items, len(classes), multilabel)
        counts = split_counts(one.items, classes)["classes"]
        shown = ", ".join(f"{label} {count}" for label, count in counts.items())
        _logger.info("site %s, %s: %d images (%s)", name, split, len(labels), shown)
        groups = tuple(item.group for item in one.items)
        return ImageSplit(one.images, labels, CachedAs(one.entry, split, site.cache_gb), groups)

    return SiteData(opened("train"), opened("val"), opened("test"))


def batches(
    split: ImageSplit | FeatureSplit,
    batch_size: int,
    *,
    seed: int | None,
    augment: Sequence[str] = (),
    weights: npt.NDArray[np.float64] | None = None,
    on: "DeviceSplits | None" = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One pass over `split`; the last batch may be short.

    Args:
        split: N images or features.
        batch_size: images in a batch.
        seed: shuffles and augments: the same seed gives the same batches, bit for bit. None keeps the order.
        augment: names of `pt_peft.data.augmentation.AUGMENTATIONS`. Features have all views that these may give.
        weights: float64 (N,), how often each image is drawn, with replacement; None draws each once.
        on: makes the batches on a GPU; None makes them on the CPU. The draws are the same.

    Yields:
        Images float32 (B,3,S,S) in [0,1], or features float32 (B,…), and labels as in `split`.
    """
    places = range(len(split))
    augmentation = None
    if seed is None:
        sampler = SequentialSampler(places)
    else:
        if weights is None:
            sampler = RandomSampler(places, generator=generator(seed))
        else:
            sampler = WeightedRandomSampler(weights.tolist(), len(split), generator=generator(seed))
        augmentation = Augmentation(augment, seed) if augment else None
    places_of = BatchSampler(sampler, batch_size, drop_last=False)
    if on:
        yield from on.batches(split, places_of, augmentation, ahead=True)
        return
    for chosen in places_of:
        labels = torch.as_tensor(split.labels[chosen])
        if isinstance(split, FeatureSplit):
            drawn = augmentation.views(len(chosen)) if augmentation else [0] * len(chosen)
            features = split.features[chosen, np.searchsorted(split.views, drawn)]
            yield torch.as_tensor(features).float(), labels
        else:
            yield _images(split, chosen, augmentation), labels


def drawn_batches(
    split: ImageSplit,
    chosen: Iterable[npt.NDArray[np.int64]],
    *,
    seed: int,
    augment: Sequence[str] = (),
    on: "DeviceSplits | None" = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of given images, as `batches` yields them.

    Args:
        split: the images.
        chosen: the places of each batch's images in `split`, int64 (B,); a batch may be empty.
        seed: of the augmentation.
        augment: names of `pt_peft.data.augmentation.AUGMENTATIONS`.
        on: as in `batches`. Nothing of `chosen` is asked for before its turn.
    """
    augmentation = Augmentation(augment, seed) if augment else None
    if on:
        yield from on.batches(split, chosen, augmentation, ahead=False)
        return
    for places in chosen:
        yield _images(split, places, augmentation), torch.as_tensor(split.labels[places])


def _images(
    split: ImageSplit, chosen: list[int] | npt.NDArray[np.int64], augmentation: Augmentation | None
) -> torch.Tensor:
    drawn = augmentation.draw(len(chosen)) if augmentation else None
    return augmented(torch.as_tensor(split.images[chosen]), drawn)
