"""What images a site has and how to read them, before any pixel is decoded."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import JsonValue

from pt_peft.data import archive, npz
from pt_peft.data.image_folder import read_image_folder
from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.partition import partition
from pt_peft.data.problems import Report, stop
from pt_peft.data.published import read_published
from pt_peft.data.splits import assign_splits, at_most
from pt_peft.data.table import read_table
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Data, FeatureShift
from pt_peft.experiment.site import Site


class SiteImages(Protocol):
    """One site's images."""

    def key(self) -> JsonValue:
        """What the decoded images depend on, independent of where the files lie. Cheap: decodes nothing."""

    def items(self, split: SplitName) -> Sequence[Item]:
        """The images of a split."""

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray | UserError]:
        """Yields each image of `items`, uint8 (3,`size`,`size`), or what is wrong with the one that cannot be read."""


def site_images(
    experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report = stop
) -> SiteImages:
    """The images of the site `name`, one of the run's sites `names`.

    Args:
        report: takes images that are wrongly listed.

    Raises:
        UserError: if what the site's data names is missing or malformed, or leaves the site without training images.
    """
    data = experiment.data
    if data.source == "lesions":
        images = _Lesions(data, experiment.seed, name)
    else:
        items = listed_items(experiment, site, report)
        if data.source != "npz":  # whose splits are the published ones
            items = assign_splits(items, experiment.seed)
        items = partition(experiment.partition, items, name=name, names=names, seed=experiment.seed)
        items = at_most(data.max_images_per_site, items, experiment.seed, name)
        if data.source == "npz":
            images = _Npz(items, site.existing("data.npz"))
        else:
            images = _Files(items, site.existing("data.images"), data.intensity)
    if experiment.partition.feature_shift:
        images = _Shifted(images, experiment.partition.feature_shift, experiment.seed, name)
    if not images.items("train"):
        raise UserError(
            f"site {name!r} has no training images: the 'train' split of its data (data.source"
            f" '{data.source}', partition.kind '{experiment.partition.kind}') is empty."
        )
    return images


def listed_items(experiment: Experiment, site: Site, report: Report = stop) -> list[Item]:
    """All images that the site's data lists, before splits are drawn and sites get their shares; not for ``lesions``.

    Args:
        report: takes images that are wrongly listed.

    Raises:
        UserError: if what the site's data names is missing or malformed.
    """
    data = experiment.data
    if data.source == "npz":
        return npz.read_npz_items(site.existing("data.npz"), data.classes, data.task == "multilabel")
    if data.source == "csv":
        return read_table(site.existing("data.table"), data, report)
    images = site.existing("data.images")
    if data.source == "image_folder":
        return read_image_folder(images, data.classes, report)
    return read_published(images, data, report)


class _Listed:
    """Images listed by a table or an ``.npz``, of which the site has `items`."""

    def __init__(self, items: Sequence[Item]):
        self._items = {split: [item for item in items if item.split == split] for split in SPLITS}

    def items(self, split: SplitName) -> Sequence[Item]:
        return self._items[split]

    def _files(self) -> list[str]:
        return [item.file for items in self._items.values() for item in items]

    def _rows_digest(self) -> str:
        """SHA-256 over which images are in which split, so that a key stays short."""
        rows = [[item.file, item.split] for items in self._items.values() for item in items]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class _Files(_Listed):
    def __init__(self, items: Sequence[Item], images: Path, intensity: Literal["type", "image"]):
        super().__init__(items)
        self._images = images
        self._intensity = intensity

    def key(self) -> JsonValue:
        stamps = json.dumps(archive.stamp(self._images, self._files()))
        return {
            "source": "files",
            "rows": self._rows_digest(),
            "files": hashlib.sha256(stamps.encode()).hexdigest(),
            "intensity": self._intensity,
        }

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray | UserError]:
        from pt_peft.data.transforms import decode_files

        files = [item.file for item in self._items[split]]
        with archive.open_archive(self._images) as open_image:
            yield from decode_files(files, open_image, size, where=str(self._images), intensity=self._intensity)


class _Npz(_Listed):
    def __init__(self, items: Sequence[Item], path: Path):
        super().__init__(items)
        self._path = path

    def key(self) -> JsonValue:
        return {"source": "npz", "rows": self._rows_digest(), "file": archive.stamp(self._path, ())}

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray]:
        from pt_peft.data.transforms import transform_arrays

        names = {item.file for item in self._items[split]}
        return transform_arrays(npz.read_npz_images(self._path, split, names), size)


@dataclass(frozen=True)
class _Lesions:
    """Images of the embedded generator, drawn at the size asked for, so that they need no transform."""

    data: Data
    seed: int
    site: str

    def key(self) -> JsonValue:
        return {
            "source": "lesions",
            "seed": self.seed,
            "site": self.site,
            "classes": len(self.data.classes),
            "counts": dict(self.data.images_per_site),
        }

    def items(self, split: SplitName) -> Sequence[Item]:
        from pt_peft.data.lesions import lesion_labels

        drawn = self._drawn(split)
        labels = lesion_labels(**drawn) if drawn["count"] else ()
        names = (f"{split}/{index}" for index in range(len(labels)))
        return [Item(name, (int(label),), split, name) for name, label in zip(names, labels, strict=True)]

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray]:
        from pt_peft.data.lesions import draw_lesions

        drawn = self._drawn(split)
        if drawn["count"]:
            yield from np.moveaxis(draw_lesions(**drawn, size=size)[0], -1, 1)

    def _drawn(self, split: SplitName) -> dict:
        """Arguments of the generator."""
        count = self.data.images_per_site.get(split, 0)
        return dict(seed=self.seed, site=self.site, split=split, count=count, num_classes=len(self.data.classes))


@dataclass(frozen=True)
class _Shifted:
    """Another source's images as the site's own device would show them. In the cache rather than on the batch, so that
    whatever reads a site's images, pooled baselines too, sees them so.
    """

    images: SiteImages
    shift: FeatureShift
    seed: int
    site: str

    def key(self) -> JsonValue:
        shift = self.shift.model_dump(mode="json")
        return {"images": self.images.key(), "shift": shift, "seed": self.seed, "site": self.site}

    def items(self, split: SplitName) -> Sequence[Item]:
        return self.images.items(split)

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray | UserError]:
        from pt_peft.data.feature_shift import SiteShift

        shifted = SiteShift(self.shift, self.seed, self.site)
        for image in self.images.decoded(split, size):
            yield image if isinstance(image, UserError) else shifted(image)
