"""What images a site has and how to read them, before any pixel is decoded."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import JsonValue

from pt_peft.data import archive, npz
from pt_peft.data.image_folder import read_image_folder
from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.partition import partition
from pt_peft.data.splits import assign_splits
from pt_peft.data.table import read_table
from pt_peft.errors import UserError
from pt_peft.experiment import Data, Experiment, FeatureShift
from pt_peft.site import Site


class SiteImages(Protocol):
    """One site's images."""

    def key(self) -> JsonValue:
        """What the decoded images and labels depend on, independent of where the files lie. Cheap: decodes nothing."""

    def counts(self) -> dict[SplitName, int]:
        """Images in each split."""

    def class_counts(self, split: SplitName) -> Counter[int]:
        """Images by label. Decodes nothing."""

    def decoded(self, split: SplitName, size: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yields each image, uint8 (3,`size`,`size`), with its label. Raises UserError naming an unreadable image."""


def site_images(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteImages:
    """The images of the site `name`, one of the run's sites `names`.

    Raises:
        UserError: if what the site's data names is missing or malformed, or leaves the site without training images.
    """
    images = _SOURCES[experiment.data.source](experiment, site, name, names)
    if experiment.partition.feature_shift:
        images = _Shifted(images, experiment.partition.feature_shift, experiment.seed, name)
    if not images.counts()["train"]:
        raise UserError(
            f"site {name!r} has no training images: the 'train' split of its data (data.source"
            f" '{experiment.data.source}', partition.kind '{experiment.partition.kind}') is empty."
        )
    return images


class _Listed:
    """Images listed by a table or an ``.npz``, of which the site has `items`."""

    def __init__(self, items: Sequence[Item]):
        self._items = {split: [item for item in items if item.split == split] for split in SPLITS}

    def counts(self) -> dict[SplitName, int]:
        return {split: len(items) for split, items in self._items.items()}

    def class_counts(self, split: SplitName) -> Counter[int]:
        return Counter(item.label for item in self._items[split])

    def _rows_digest(self) -> str:
        """SHA-256 over what the source says of the site's images, so that a key stays short."""
        rows = [[item.file, item.label, item.split, item.group] for items in self._items.values() for item in items]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class _Files(_Listed):
    def __init__(self, items: Sequence[Item], images: Path):
        super().__init__(items)
        self._images = images

    def key(self) -> JsonValue:
        files = [item.file for items in self._items.values() for item in items]
        stamps = json.dumps(archive.stamp(self._images, files))
        return {"source": "files", "rows": self._rows_digest(), "files": hashlib.sha256(stamps.encode()).hexdigest()}

    def decoded(self, split: SplitName, size: int) -> Iterator[tuple[np.ndarray, int]]:
        from pt_peft.data.transforms import decode_files

        items = self._items[split]
        files = [item.file for item in items]
        with archive.open_archive(self._images, files) as open_image:
            images = decode_files(files, open_image, size, where=str(self._images))
            yield from zip(images, (item.label for item in items), strict=True)


class _Npz(_Listed):
    def __init__(self, items: Sequence[Item], path: Path):
        super().__init__(items)
        self._path = path

    def key(self) -> JsonValue:
        return {"source": "npz", "rows": self._rows_digest(), "file": archive.stamp(self._path, ())}

    def decoded(self, split: SplitName, size: int) -> Iterator[tuple[np.ndarray, int]]:
        from pt_peft.data.transforms import transform_arrays

        items = self._items[split]
        arrays = npz.read_npz_images(self._path, split, {item.file for item in items})
        yield from zip(transform_arrays(arrays, size), (item.label for item in items), strict=True)


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
            "counts": dict(self.counts()),
        }

    def counts(self) -> dict[SplitName, int]:
        return {split: self.data.images_per_site.get(split, 0) for split in SPLITS}

    def class_counts(self, split: SplitName) -> Counter[int]:
        classes = len(self.data.classes)  # in turn, see `draw_lesions`
        return Counter(index % classes for index in range(self.counts()[split]))

    def decoded(self, split: SplitName, size: int) -> Iterator[tuple[np.ndarray, int]]:
        from pt_peft.data.lesions import draw_lesions

        count = self.counts()[split]
        if not count:
            return
        images, labels = draw_lesions(
            seed=self.seed, site=self.site, split=split, count=count, size=size, num_classes=len(self.data.classes)
        )
        yield from zip(np.moveaxis(images, -1, 1), labels.tolist(), strict=True)


@dataclass(frozen=True)
class _Shifted:
    """Another source's images as the site's own device would show them. In the cache rather than on the batch, so that
    whatever reads a site's images, pooled baselines too, sees them so."""

    images: SiteImages
    shift: FeatureShift
    seed: int
    site: str

    def key(self) -> JsonValue:
        shift = self.shift.model_dump(mode="json")
        return {"images": self.images.key(), "shift": shift, "seed": self.seed, "site": self.site}

    def counts(self) -> dict[SplitName, int]:
        return self.images.counts()

    def class_counts(self, split: SplitName) -> Counter[int]:
        return self.images.class_counts(split)

    def decoded(self, split: SplitName, size: int) -> Iterator[tuple[np.ndarray, int]]:
        from pt_peft.data.feature_shift import SiteShift

        shifted = SiteShift(self.shift, self.seed, self.site)
        for image, label in self.images.decoded(split, size):
            yield shifted(image), label


def _csv(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteImages:
    data = experiment.data
    items = read_table(site.existing("data.table"), data.columns, data.classes)
    items = assign_splits(items, experiment.seed)
    return _Files(_share(items, experiment, name, names), site.existing("data.images"))


def _image_folder(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteImages:
    path = site.existing("data.images")
    items = assign_splits(read_image_folder(path, experiment.data.classes), experiment.seed)
    return _Files(_share(items, experiment, name, names), path)


def _npz(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteImages:
    path = site.existing("data.npz")
    items = npz.read_npz_items(path, experiment.data.classes)  # in their published splits
    return _Npz(_share(items, experiment, name, names), path)


def _lesions(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteImages:
    return _Lesions(experiment.data, experiment.seed, name)


def _share(items: Sequence[Item], experiment: Experiment, name: str, names: Sequence[str]) -> list[Item]:
    return partition(experiment.partition, items, name=name, names=names, seed=experiment.seed)


_SOURCES: dict[str, Callable[[Experiment, Site, str, Sequence[str]], SiteImages]] = {
    "csv": _csv,
    "image_folder": _image_folder,
    "npz": _npz,
    "lesions": _lesions,
}
