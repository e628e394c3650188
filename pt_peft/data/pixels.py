"""The decoded images of a site, from each kind of source."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from pt_peft.data import archive, npz
from pt_peft.data.frames import located
from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import Frames
from pt_peft.experiment.preprocessing import Decoding
from pt_peft.experiment.sections import Data, FeatureShift

Image = npt.NDArray[np.uint8]
"""One image, uint8 (3,S,S)."""


class SiteImages(Protocol):
    """One site's images."""

    def key(self) -> JsonValue:
        """Which images they are, wherever their files lie. Cheap: decodes nothing."""
        ...

    def items(self, split: SplitName) -> Sequence[Item]:
        """The images of `split`."""
        ...

    def decoded(self, split: SplitName, decoding: Decoding) -> Iterator[Image | UserError]:
        """Yields each image of `items`, uint8 (3,S,S), or what is wrong with an image that cannot be read."""
        ...


class _Listed:
    """Images that a table, a folder or an ``.npz`` lists; `items` are those of the site."""

    def __init__(self, items: Sequence[Item]):
        self._items: dict[SplitName, list[Item]] = {
            split: [item for item in items if item.split == split] for split in SPLITS
        }

    def items(self, split: SplitName) -> Sequence[Item]:
        return self._items[split]

    def _files(self) -> list[str]:
        return [item.file for items in self._items.values() for item in items]

    def _rows_digest(self) -> str:
        """SHA-256 over the images of each split; keeps a key short."""
        rows = [[item.file, item.split] for items in self._items.values() for item in items]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class FileImages(_Listed):
    """Image files in a folder or zip archive."""

    def __init__(self, items: Sequence[Item], images: Path, frames: Frames):
        super().__init__(items)
        self._images = images
        self._frames: Frames = frames

    def key(self) -> JsonValue:
        """See `SiteImages`."""
        files = dict.fromkeys(located(name, self._frames)[0] for name in self._files())
        stamps = json.dumps(archive.stamp(self._images, list(files)))
        return {
            "source": "files",
            "rows": self._rows_digest(),
            "files": hashlib.sha256(stamps.encode()).hexdigest(),
            "frames": self._frames,
        }

    def decoded(self, split: SplitName, decoding: Decoding) -> Iterator[Image | UserError]:
        """See `SiteImages`."""
        from pt_peft.data.transforms import decode_files

        files = [item.file for item in self._items[split]]
        with archive.open_archive(self._images) as open_image:
            yield from decode_files(files, open_image, decoding, where=str(self._images), frames=self._frames)


class NpzImages(_Listed):
    """The arrays of a MedMNIST-style ``.npz``."""

    def __init__(self, items: Sequence[Item], path: Path):
        super().__init__(items)
        self._path = path

    def key(self) -> JsonValue:
        """See `SiteImages`."""
        return {
            "source": "npz",
            "rows": self._rows_digest(),
            "file": [list(one) for one in archive.stamp(self._path, ())],
        }

    def decoded(self, split: SplitName, decoding: Decoding) -> Iterator[Image]:
        """See `SiteImages`."""
        from pt_peft.data.transforms import transform_arrays

        names = {item.file for item in self._items[split]}
        return transform_arrays(npz.read_npz_images(self._path, split, names), decoding)


class _Drawn(TypedDict):
    """Arguments of `pt_peft.data.lesions.lesion_labels`."""

    seed: int
    site: str
    split: str
    count: int
    num_classes: int


@dataclass(frozen=True)
class LesionImages:
    """Images of the embedded generator, drawn at the size asked for, so that they need no transform."""

    data: Data
    seed: int
    site: str

    def key(self) -> JsonValue:
        """See `SiteImages`."""
        return {
            "source": "lesions",
            "seed": self.seed,
            "site": self.site,
            "classes": len(self.data.classes),
            "counts": {split: count for split, count in self.data.images_per_site.items()},
        }

    def items(self, split: SplitName) -> Sequence[Item]:
        """See `SiteImages`."""
        from pt_peft.data.lesions import lesion_labels

        drawn = self._drawn(split)
        labels = lesion_labels(**drawn) if drawn["count"] else ()
        files = [f"{split}/{index}" for index in range(len(labels))]
        return [Item(file, (int(label),), split, file) for file, label in zip(files, labels, strict=True)]

    def decoded(self, split: SplitName, decoding: Decoding) -> Iterator[Image]:
        """See `SiteImages`."""
        from pt_peft.data.lesions import draw_lesions

        drawn = self._drawn(split)
        if drawn["count"]:
            yield from np.moveaxis(draw_lesions(**drawn, size=decoding.image_size)[0], -1, 1)

    def _drawn(self, split: SplitName) -> _Drawn:
        return {
            "seed": self.seed,
            "site": self.site,
            "split": split,
            "count": self.data.images_per_site.get(split, 0),
            "num_classes": len(self.data.classes),
        }


@dataclass(frozen=True)
class ShiftedImages:
    """Images of another source as the site's own device would show them.

    The cache holds the shifted images, so that everything that reads a site's images sees them, pooled baselines too.
    """

    images: SiteImages
    shift: FeatureShift
    seed: int
    site: str

    def key(self) -> JsonValue:
        """See `SiteImages`."""
        shift = self.shift.model_dump(mode="json")
        return {"images": self.images.key(), "shift": shift, "seed": self.seed, "site": self.site}

    def items(self, split: SplitName) -> Sequence[Item]:
        """See `SiteImages`."""
        return self.images.items(split)

    def decoded(self, split: SplitName, decoding: Decoding) -> Iterator[Image | UserError]:
        """See `SiteImages`."""
        from pt_peft.data.feature_shift import SiteShift

        shifted = SiteShift(self.shift, self.seed, self.site)
        for image in self.images.decoded(split, decoding):
            yield image if isinstance(image, UserError) else shifted(image)
