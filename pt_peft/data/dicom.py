"""Single-frame DICOM images as 8-bit pictures, through pydicom.

Importing this module imports pydicom: import it where images are decoded.
"""

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

MAGIC = b"DICM"
"""Bytes 128 to 131 of a DICOM file (PS3.10 section 7.1)."""


def is_dicom(stream: BinaryIO) -> bool:
    """Whether the file is DICOM; leaves the position at the start."""
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == MAGIC


def read_dicom(stream: BinaryIO) -> Image.Image:
    """The image as it is meant to be displayed, mode L or RGB.

    Grey values pass the modality LUT (rescale slope and intercept), then the VOI LUT or the first window (PS3.3
    C.11.2). The range of the window becomes 0 to 255; without a window, the range of the image's own values without
    padding. MONOCHROME1 is inverted. Palettes are looked up, YBR is converted to RGB.

    Args:
        stream: the file.

    Raises:
        ValueError: for several frames, an unknown photometric interpretation, or pixels that cannot be decoded.
    """
    try:
        data = pydicom.dcmread(stream)  # pyright: ignore[reportUnknownMemberType]  # a bare PathLike in its signature
        if int(data.get("NumberOfFrames") or 1) != 1:
            raise ValueError(f"has {data.NumberOfFrames} frames; single-frame images are supported")
        photometric = data.PhotometricInterpretation
        pixels = pixel_array(data)  # converts YBR to RGB
    except (InvalidDicomError, AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(f"is not a readable DICOM image ({' '.join(str(error).split())[:200]})") from None
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
        return Image.fromarray((pixels >> (8 * pixels.itemsize - 8)).astype(np.uint8))
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey = _displayed(pixels, data)
        return Image.fromarray(255 - grey if photometric == "MONOCHROME1" else grey)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (photometric == "RGB" or photometric.startswith("YBR")):
        return Image.fromarray((pixels >> max(0, data.BitsStored - 8)).astype(np.uint8))
    raise ValueError(f"has photometric interpretation {photometric}, which is not supported")


def _displayed(pixels: npt.NDArray[Any], data: Dataset) -> npt.NDArray[np.uint8]:
    """Grey values as displayed, uint8 of the shape of `pixels`, before any inversion."""
    values = apply_modality_lut(pixels, data)
    if data.get("VOILUTSequence"):
        shown = apply_voi_lut(values, data).astype(np.float64)
        low, high = 0.0, 2.0 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        shown = apply_voi_lut(values, data, prefer_lut=False).astype(np.float64)
        centre, width = (float(np.atleast_1d(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        # Values far outside of the window become the ends of its range.
        low, high = apply_voi_lut(np.array([centre - 100 * width, centre + 100 * width]), data, prefer_lut=False)
    else:
        shown = values.astype(np.float64)
        padding = data.get("PixelPaddingValue")
        image = shown[pixels != padding] if padding is not None else shown
        low, high = (image.min(), image.max()) if image.size else (shown.min(), shown.max())
    scaled = (shown - low) / max(high - low, np.finfo(np.float64).tiny)
    return (255 * np.clip(scaled, 0, 1)).round().astype(np.uint8)
