"""The deterministic part of the image pipeline, as MONAI transforms: any image file or array → uint8 (3,S,S).

Importing this module imports MONAI (seconds): import it where images are decoded, not where cached ones are read.
"""

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import Dataset, IterableDataset, PILReader
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    MapTransform,
    RepeatChanneld,
)
from monai.utils import ensure_tuple
from PIL import Image, ImageOps, UnidentifiedImageError

from pt_peft.data.archive import OpenArchive
from pt_peft.data.dicom import is_dicom, read_dicom
from pt_peft.data.untracked import untracked
from pt_peft.errors import UserError

Intensity = Literal["type", "image"]

_KEY = "image"


class ArchiveReader(PILReader):
    """MONAI's PILReader, and pydicom, over files that an archive opens by name; yields RGB arrays, uint8 (H,W,3)."""

    def __init__(self, open_image: OpenArchive, intensity: Intensity):
        self._to_rgb = partial(to_rgb, intensity=intensity)
        super().__init__(converter=self._to_rgb, reverse_indexing=False)
        self._open_image = open_image
        self.reason = ""
        """Why the last image was refused; MONAI keeps no exception of a reader's."""

    def read(self, data: str | Sequence[str], **kwargs) -> Image.Image:
        (name,) = ensure_tuple(data)
        self.reason = ""
        try:
            with self._open_image(name) as stream:
                if is_dicom(stream):
                    return self._to_rgb(read_dicom(stream))
                return super().read((stream,), **kwargs)
        except UnidentifiedImageError:  # says no more than that
            raise
        except Exception as error:
            self.reason = f" ({' '.join(str(error).split())[:200]})"
            raise

    def get_data(self, img: Image.Image) -> tuple[np.ndarray, dict]:
        array, meta = super().get_data(img)
        return array.copy(), meta  # Pillow's own buffer is read-only, which torch warns of


class ResizeShorterSided(MapTransform):
    """uint8 (3,H,W) → (3,H',W') with min(H',W') = `size` and the aspect ratio kept; bicubic and antialiased, as timm's
    own evaluation transform.

    torch rather than MONAI's ``Resize``, which blurs in float32 before it samples: 8 ms against 0.4 ms for 200x150
    pixels, 3.4 s against 0.03 s for 2000x1500.
    """

    def __init__(self, keys: KeysCollection, size: int):
        super().__init__(keys)
        self._size = size

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self._resized(data[key])
        return data

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        # What is far from the centre will be cropped; a line of pixels would else become millions.
        longest = 8 * min(image.shape[1:])
        for axis in (1, 2):
            if (length := image.shape[axis]) > longest:
                image = image.narrow(axis, (length - longest) // 2, longest)
        sides = image.shape[1:]
        target = [max(self._size, round(side * self._size / min(sides))) for side in sides]
        if list(sides) == target:
            return image
        return torch.nn.functional.interpolate(image[None], target, mode="bicubic", antialias=True)[0]


def to_rgb(image: Image.Image, intensity: Intensity = "type") -> Image.Image:
    """The image upright (EXIF orientation) and in mode RGB: grey repeated, palette looked up, alpha dropped.

    Args:
        intensity: of more than 8 bits a pixel: the upper 8 of 16 bits (``type``), or the image's lowest value to 0 and its
            highest to 255 (``image``).

    Raises:
        ValueError: for 32-bit images with ``type``, whose range is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if intensity == "image":
            image = Image.fromarray(_stretched(values))
        elif image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode!r} has 32 bits a pixel; data.intensity 'image' would take it")
        else:  # convert() would clip everything above 255 to white
            image = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    """uint8 of the shape of `values`: its lowest 0, its highest 255; 0 throughout if it has one value."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("has values that are not finite")
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def decode_files(
    names: Sequence[str], open_image: OpenArchive, size: int, *, where: str, intensity: Intensity = "type"
) -> Iterator[np.ndarray | UserError]:
    """Yields each named image as uint8 (3,`size`,`size`), or what is wrong with it.

    Args:
        where: the archive, for errors.
        intensity: see `to_rgb`.
    """
    reader = ArchiveReader(open_image, intensity)
    with warnings.catch_warnings():
        # MONAI makes one of every reader it knows, and tells of those that need hardware which is not there.
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        load = LoadImaged(
            _KEY,
            reader=reader,
            dtype=np.uint8,
            image_only=True,
            ensure_channel_first=True,
            expanduser=False,  # names are the archive's, not the file system's
        )
    load._loader.readers = [reader]  # MONAI would try others where ours refuses, and take a name for a path
    dataset = Dataset([{_KEY: name} for name in names], Compose([load, *_to_square(size)]))
    for index, name in enumerate(names):
        try:
            with untracked():
                image = dataset[index][_KEY]
        except RuntimeError:
            yield _unreadable(name, open_image, where, reader.reason)
        else:
            yield image.numpy()


def _unreadable(name: str, open_image: OpenArchive, where: str, reason: str) -> UserError:
    try:
        open_image(name).close()
    except (KeyError, FileNotFoundError):
        return UserError(f"{where}: has no image '{name}', which the table lists.")
    except Exception as error:  # encrypted, of an unknown compression, damaged, not a file …
        return UserError(f"{where}: image '{name}' cannot be read ({error}).")
    return UserError(
        f"{where}: image '{name}' cannot be decoded{reason}; it should be a whole PNG, JPEG, TIFF or BMP of 8 or 16 bits, or a "
        "single-frame DICOM image."
    )


def transform_arrays(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields each uint8 array, all grey (H,W) or all RGB (H,W,3), as uint8 (3,`size`,`size`)."""
    arrays = iter(arrays)
    first = next(arrays, None)
    if first is None:
        return
    if first.ndim == 2:
        to_channels = [EnsureChannelFirstd(_KEY, channel_dim="no_channel"), RepeatChanneld(_KEY, repeats=3)]
    else:
        to_channels = [EnsureChannelFirstd(_KEY, channel_dim=-1)]
    data = ({_KEY: array} for array in chain([first], arrays))
    dataset = iter(IterableDataset(data, Compose([*to_channels, *_to_square(size)])))
    while True:
        with untracked():
            sample = next(dataset, None)
        if sample is None:
            return
        yield sample[_KEY].numpy()


def _to_square(size: int) -> list[MapTransform]:
    return [ResizeShorterSided(_KEY, size), CenterSpatialCropd(_KEY, roi_size=(size, size))]
