"""What images a site has and how to read them, before any pixel is decoded."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
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
from pt_peft.data.splits import assign_splits
from pt_peft.data.table import read_table
from pt_peft.errors import UserError
from pt_peft.experiment import PUBLISHED, Data, Experiment, FeatureShift
from pt_peft.site import Site


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
    images = _SOURCES[experiment.data.source](experiment, site, name, names, report)
    if experiment.partition.feature_shift:
        images = _Shifted(images, experiment.partition.feature_shift, experiment.seed, name)
    if not images.items("train"):
        raise UserError(
            f"site {name!r} has no training images: the 'train' split of its data (data.source"
            f" '{experiment.data.source}', partition.kind '{experiment.partition.kind}') is empty."
        )
    return images


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
        classes = len(self.data.classes)  # in turn, see `draw_lesions`
        names = (f"{split}/{index}" for index in range(self.data.images_per_site.get(split, 0)))
        return [Item(name, (index % classes,), split, name) for index, name in enumerate(names)]

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray]:
        from pt_peft.data.lesions import draw_lesions

        count = self.data.images_per_site.get(split, 0)
        if count:
            images, _ = draw_lesions(
                seed=self.seed, site=self.site, split=split, count=count, size=size, num_classes=len(self.data.classes)
            )
            yield from np.moveaxis(images, -1, 1)


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

    def items(self, split: SplitName) -> Sequence[Item]:
        return self.images.items(split)

    def decoded(self, split: SplitName, size: int) -> Iterator[np.ndarray | UserError]:
        from pt_peft.data.feature_shift import SiteShift

        shifted = SiteShift(self.shift, self.seed, self.site)
        for image in self.images.decoded(split, size):
            yield image if isinstance(image, UserError) else shifted(image)


def _csv(experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report) -> SiteImages:
    return _files(read_table(site.existing("data.table"), experiment.data, report), experiment, site, name, names)


def _image_folder(experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report) -> SiteImages:
    items = read_image_folder(site.existing("data.images"), experiment.data.classes, report)
    return _files(items, experiment, site, name, names)


def _published(experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report) -> SiteImages:
    return _files(read_published(site.existing("data.images"), experiment.data, report), experiment, site, name, names)


def _files(items: Sequence[Item], experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> SiteImages:
    items = _share(assign_splits(items, experiment.seed), experiment, name, names)
    return _Files(items, site.existing("data.images"), experiment.data.intensity)


def _npz(experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report) -> SiteImages:
    path, data = site.existing("data.npz"), experiment.data
    items = npz.read_npz_items(path, data.classes, data.task == "multilabel")  # in their published splits
    return _Npz(_share(items, experiment, name, names), path)


def _lesions(experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report) -> SiteImages:
    return _Lesions(experiment.data, experiment.seed, name)


def _share(items: Sequence[Item], experiment: Experiment, name: str, names: Sequence[str]) -> list[Item]:
    return partition(experiment.partition, items, name=name, names=names, seed=experiment.seed)


_SOURCES: dict[str, Callable[[Experiment, Site, str, Sequence[str], Report], SiteImages]] = {
    "csv": _csv,
    "image_folder": _image_folder,
    "npz": _npz,
    "lesions": _lesions,
    **dict.fromkeys(PUBLISHED, _published),
}
