"""The deterministic part of the image pipeline, as MONAI transforms: any image file or array → uint8 (3,S,S).

Importing this module imports MONAI (seconds): import it where images are decoded, not where cached images are read.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import CenterSpatialCrop, Compose, EnsureChannelFirst, RepeatChannel, Transform
from PIL import Image, UnidentifiedImageError

from pt_peft.data.archive import OpenArchive
from pt_peft.data.frames import located
from pt_peft.data.problems import Remark, log_remark
from pt_peft.data.stored import opaque, stored_image, upright
from pt_peft.data.untracked import untracked
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import Frames
from pt_peft.experiment.preprocessing import Decoding
from pt_peft.experiment.sections import Intensity

Pixels = npt.NDArray[np.uint8]
_logger = logging.getLogger(__name__)
LONGEST = 1000
"""Characters of a decoder's message that are shown."""


class ToSquare(Transform):
    """uint8 (3,H,W) → (3,S,S), by the experiment's ``data.fit``. A square image is resized, whatever it says.

    torch rather than MONAI's ``Resize``, which blurs in float32 before it samples: 8 ms against 0.4 ms for 200x150
    pixels, 3.4 s against 0.03 s for 2000x1500.
    """

    def __init__(self, decoding: Decoding):
        self._decoding = decoding
        self._crop = CenterSpatialCrop(roi_size=(decoding.image_size, decoding.image_size))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 (3,H,W) to uint8 (3,S,S)."""
        size, fit = self._decoding.image_size, self._decoding.fit
        if fit == "squash":
            return self._resized(image, [size, size])
        if fit == "pad":
            longer = max(image.shape[1:])
            return self._padded(self._resized(image, [max(1, round(side * size / longer)) for side in image.shape[1:]]))
        image = _middle(image)
        shorter = min(image.shape[1:])
        return self._crop(self._resized(image, [max(size, round(side * size / shorter)) for side in image.shape[1:]]))

    def _resized(self, image: torch.Tensor, sides: list[int]) -> torch.Tensor:
        if list(image.shape[1:]) == sides:
            return image
        how = self._decoding
        return torch.nn.functional.interpolate(image[None], sides, mode=how.interpolation, antialias=how.antialias)[0]

    def _padded(self, image: torch.Tensor) -> torch.Tensor:
        """The image in the middle of a square of the pad value; an odd pixel goes to its right or below."""
        size = self._decoding.image_size
        height, width = image.shape[1:]
        top, left = (size - height) // 2, (size - width) // 2
        square = torch.tensor(self._decoding.pad_value, dtype=image.dtype)[:, None, None].repeat(1, size, size)
        square[:, top : top + height, left : left + width] = image
        return square


def _middle(image: torch.Tensor) -> torch.Tensor:
    """At most eight times as long as wide: a line of pixels would become millions, which a crop would discard."""
    longest = 8 * min(image.shape[1:])
    for axis in (1, 2):
        if (length := image.shape[axis]) > longest:
            image = image.narrow(axis, (length - longest) // 2, longest)
    return image


def to_rgb(image: Image.Image, intensity: Intensity = "type", remark: Remark = log_remark) -> Image.Image:
    """The image upright (EXIF orientation), on black where it is transparent, and in mode RGB.

    Grey is repeated, palettes are looked up.

    Args:
        image: any image of Pillow's.
        intensity: what becomes 0 to 255 of more than 8 bits a pixel: the upper 8 of 16 bits (``type``), or the range
            from the image's lowest to its highest value (``image``).
        remark: takes what is odd about the image.

    Raises:
        ValueError: for values of 32 bits or with a sign with ``type``: their range is not known.
    """
    image = opaque(upright(image, remark))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if intensity == "image":
            image = Image.fromarray(_stretched(values))
        elif image.mode in ("I", "F"):
            raise ValueError("has values of 32 bits, or with a sign; data.intensity 'image' would take their own range")
        else:  # convert() would clip everything above 255 to white
            image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _stretched(values: npt.NDArray[np.number]) -> Pixels:
    """The values scaled from their lowest, 0, to their highest, 255; all 0 if they are all equal. Shape as `values`."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("has values that are not finite")
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def decode_image(image: Image.Image, decoding: Decoding, remark: Remark = log_remark) -> Pixels:
    """An image of Pillow's as uint8 (3,S,S).

    Args:
        image: any.
        decoding: how it becomes pixels.
        remark: takes what is odd about the image.

    Raises:
        ValueError: as `to_rgb` does.
        Exception: any error of the decoder, as the image may not be read yet.
    """
    rgb = np.array(to_rgb(image, decoding.intensity, remark))
    with untracked():
        return Compose([EnsureChannelFirst(channel_dim=-1), ToSquare(decoding)])(rgb).numpy()


def decode_files(
    names: Sequence[str], open_image: OpenArchive, decoding: Decoding, *, where: str, frames: Frames = None
) -> Iterator[Pixels | UserError]:
    """Yields each named image as uint8 (3,S,S), or what is wrong with it; logs what is odd, a line a kind.

    Args:
        names: the images' names in the archive.
        open_image: opens an image by its name.
        decoding: how they become pixels.
        where: the archive, for errors.
        frames: what the names mean, see `pt_peft.data.frames.located`.
    """
    remarks: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:

        def remark(kind: str, what: str, name: str = name) -> None:
            remarks[kind].append(f"'{name}' {what}")

        file, frame = located(name, frames)
        try:
            with open_image(file) as stream:
                image = decode_image(stored_image(stream, frame, remark), decoding, remark)
        except Exception as error:  # decoders raise anything for a damaged file
            yield _unreadable(name, file, open_image, where, error)
        else:
            yield image
    for kind, found in remarks.items():
        _logger.warning("%s: %s: %d of %d images (first: %s)", where, kind, len(found), len(names), found[0])


def _unreadable(name: str, file: str, open_image: OpenArchive, where: str, error: Exception) -> UserError:
    """What is wrong with the image, for whose decoding `error` was raised."""
    try:
        open_image(file).close()
    except (KeyError, FileNotFoundError):
        return UserError(f"{where}: image '{name}' does not exist.")
    except Exception as cause:  # encrypted, of an unknown compression, damaged, not a file …
        return UserError(f"{where}: image '{name}' cannot be read ({cause}).")
    reason = "" if isinstance(error, UnidentifiedImageError) else f" ({' '.join(str(error).split())[:LONGEST]})"
    return UserError(
        f"{where}: image '{name}' cannot be decoded{reason}; it should be a whole PNG, JPEG, TIFF or BMP of 8 or 16 "
        "bits, or a DICOM image."
    )


def transform_arrays(arrays: Iterable[Pixels], decoding: Decoding) -> Iterator[Pixels]:
    """Yields each uint8 array, grey (H,W) or RGB (H,W,3), as uint8 (3,S,S)."""
    to_square = ToSquare(decoding)
    grey = Compose([EnsureChannelFirst(channel_dim="no_channel"), RepeatChannel(repeats=3), to_square])
    rgb = Compose([EnsureChannelFirst(channel_dim=-1), to_square])
    for array in arrays:
        with untracked():
            image = grey(array) if array.ndim == 2 else rgb(array)
        yield image.numpy()
