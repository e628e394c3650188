"""DICOM images as 8-bit pictures: pydicom decodes the pixels, `dicom_display` shows them.

Importing this module imports pydicom: import it where images are decoded.
"""

import logging
import math
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom import Dataset, uid
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from pt_peft.data.dicom_display import coloured, displayed, row_to_column_spacing
from pt_peft.data.frames import chosen
from pt_peft.data.problems import Remark, log_remark
from pt_peft.logs import quiet

MAGIC = b"DICM"
"""Bytes 128 to 131 of a DICOM file (PS3.10 section 7.1)."""
_LONG = tuple(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with a length of 32 bits (PS3.5 section 7.1.2)."""
_SHORT = tuple(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a length of 16 bits."""

SHAPE = "DICOM pixels that are not square"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that pydicom gives as RGB."""


class _Decoder(NamedTuple):
    """A package that decodes pixels, which pydicom uses if it is installed."""

    package: str
    module: str
    """The module of the package that tells whether it is installed."""
    source: str = "pip install python-gdcm pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle pyjpegls would be right"
    """Where it comes from, in words."""


_GDCM, _OPENJPEG = _Decoder("python-gdcm", "gdcm"), _Decoder("pylibjpeg-openjpeg", "openjpeg")
DECODERS = {
    uid.JPEGExtended12Bit: _Decoder(
        "pylibjpeg-libjpeg", "libjpeg", "pip install pylibjpeg pylibjpeg-libjpeg, whose licence is the GPL"
    ),
    uid.JPEGLossless: _GDCM,
    uid.JPEGLosslessSV1: _GDCM,
    uid.JPEGLSLossless: _GDCM,
    uid.JPEGLSNearLossless: _GDCM,
    uid.JPEG2000Lossless: _OPENJPEG,
    uid.JPEG2000: _OPENJPEG,
    uid.HTJ2KLossless: _OPENJPEG,
    uid.HTJ2KLosslessRPCL: _OPENJPEG,
    uid.HTJ2K: _OPENJPEG,
}
"""By transfer syntax, what decodes the pixels that pydicom and Pillow do not: of JPEG Extended, more than 8 bits; of
JPEG 2000, some."""


def is_dicom(stream: BinaryIO) -> bool:
    """Whether the file is DICOM, with a preamble or without one; leaves the position at the start.

    A file without a preamble begins with two elements of the file meta information (group 0002) or of the data set
    (group 0008), as older devices and exports of a PACS write it.
    """
    head = stream.read(256)
    stream.seek(0)
    if head[128:132] == MAGIC:
        return True
    first = _element(head, 0)
    second = first and _element(head, first[1])
    return bool(first and second and first[0] < second[0])


def _element(head: bytes, start: int) -> tuple[int, int] | None:
    """Tag and end of the data element at `start`; None if there is none of group 0002 or 0008."""
    vr = head[start + 4 : start + 6]
    explicit = vr in _SHORT or vr in _LONG
    order = "big" if explicit and head[start] == 0 else "little"  # implicit VR is little endian (PS3.5 section 10.1)

    def number(place: int, length: int) -> int:
        return int.from_bytes(head[start + place : start + place + length], order)

    if len(head) < start + 12 or number(0, 2) not in (0x0002, 0x0008):
        return None
    place, width = (8, 4) if vr in _LONG else (6, 2) if explicit else (4, 4)
    return number(0, 2) << 16 | number(2, 2), start + place + width + number(place, width)


def read_header(stream: BinaryIO) -> Dataset:
    """The data set without its pixels."""
    return pydicom.dcmread(stream, force=True, stop_before_pixels=True)  # pyright: ignore[reportUnknownMemberType]


def frame_count(data: Dataset) -> int:
    """The number of frames, 1 where the data set does not say. Raises ValueError if it is no number."""
    try:
        return int(data.get("NumberOfFrames") or 1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has a NumberOfFrames that is no number ({error})") from None


def read_dicom(stream: BinaryIO, frame: int | None = None, remark: Remark = log_remark) -> Image.Image:
    """An image as it is meant to be displayed, mode L or RGB.

    Grey values: see `pt_peft.data.dicom_display.displayed`. Palettes are looked up, YBR is converted to RGB.

    Args:
        stream: the file.
        frame: the frame, counted from 0; None: the only one.
        remark: takes what the file says of its display and has no meaning.

    Raises:
        ValueError: if there is no such frame, for colours that are not known, for pixels that cannot be decoded, or are
            more than Pillow takes of other files.
    """
    try:
        data = pydicom.dcmread(stream, force=True)  # pyright: ignore[reportUnknownMemberType]  # a bare PathLike
        index = chosen(frame, frame_count(data))
        _check_size(data)
        stored = _decoded(data, index)
        if (ratio := row_to_column_spacing(data, index)) and not math.isclose(ratio, 1, rel_tol=0.01):
            remark(SHAPE, f"has pixels that are {ratio:.3g} times as high as wide; it is shown as if they were square")
        photometric = str(data.PhotometricInterpretation)
        if photometric == "PALETTE COLOR":
            return Image.fromarray(coloured(stored, data))
        if data.get("PixelPresentation") in ("COLOR", "MIXED"):
            raise ValueError("has colours among its grey values (PS3.3 C.7.6.19), which are not supported")
        if photometric in ("MONOCHROME1", "MONOCHROME2"):
            return Image.fromarray(displayed(stored, data, index, remark))
        if photometric in _COLOURS and stored.shape[2:] == (3,):
            return Image.fromarray(_scaled(stored, int(data.BitsStored), remark))
        raise ValueError(f"has photometric interpretation {photometric}, which is not supported")
    except ValueError:
        raise
    except Exception as error:  # pydicom raises anything for a damaged file
        raise ValueError(f"is not a readable DICOM image ({_short(error)})") from None


def _check_size(data: Dataset) -> None:
    """Raises ValueError for as many pixels as Pillow refuses: a few bytes that are compressed can say so many."""
    pixels, most = int(data.get("Rows") or 0) * int(data.get("Columns") or 0), 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
    if pixels > most:
        raise ValueError(f"has {pixels} pixels; at most {most:g} would be right")


def _scaled(colours: npt.NDArray[Any], bits: int, remark: Remark) -> npt.NDArray[np.uint8]:
    """Colours of `bits` bits, from 0 to 255."""
    used = int(colours.max()).bit_length()
    if bits > 8 and used < bits:
        bright = 255 >> (bits - used)
        remark("dark DICOM colours", f"uses {used} of its {bits} bits, so that it is at most {bright} of 255 bright")
    return (colours * (255 / (2**bits - 1))).round().astype(np.uint8)


def _decoded(data: Dataset, frame: int) -> npt.NDArray[Any]:
    """The stored values of a frame, (H,W) or RGB (H,W,3)."""
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = uid.UID(str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")).name
        raise ValueError(f"is a DICOM object without pixels ({kind or 'of no SOP class'})")
    if "PhotometricInterpretation" not in data:
        raise ValueError("has no PhotometricInterpretation, so that its values have no meaning")
    if not data.file_meta.get("TransferSyntaxUID"):  # no file meta information
        implicit, little = data.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    syntax: uid.UID = data.file_meta.TransferSyntaxUID
    allocated, bits = int(data.get("BitsAllocated") or 0), int(data.get("BitsStored") or 0)
    unused_below = int(data.get("HighBit") or 0) + 1 - bits
    try:
        with quiet("pydicom", logging.CRITICAL):  # it logs the traceback of every decoder that it tries
            if unused_below <= 0 or syntax.is_compressed:
                return pixel_array(data, index=frame)
            # PS3.5 section 8.1.1: the value ends at HighBit, which pydicom takes to be the highest bit of BitsStored.
            words = pixel_array(data, index=frame, correct_unused_bits=False)
            return words << (allocated - bits - unused_below) >> (allocated - bits)
    except Exception as error:
        raise ValueError(_why_not_decoded(syntax, bits, error)) from None


def _why_not_decoded(syntax: uid.UID, bits: int, error: Exception) -> str:
    """What keeps pixels from being decoded, with the package that would decode them, if it is not installed."""
    if not syntax.is_compressed:
        return f"has pixels that cannot be read ({_short(error)})"
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        return f"is compressed as {syntax.name}, which pydicom does not decode; save its frames as images first"
    why = f"is compressed as {syntax.name}"
    if available:
        why += f", and its pixels cannot be decoded ({_short(error)})"
    decoder = None if syntax == uid.JPEGExtended12Bit and bits == 8 else DECODERS.get(syntax)
    if decoder is None or find_spec(decoder.module):
        return why
    return f"{why}; the package '{decoder.package}' is not installed, which decodes it: {decoder.source}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
