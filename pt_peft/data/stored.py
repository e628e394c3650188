"""An image file as it is stored: which of its pictures, which way up, and on what it stands where it is transparent.

Importing this module imports pydicom: import it where images are decoded.
"""

from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from pt_peft.data.dicom import frame_count, is_dicom, read_dicom, read_header
from pt_peft.data.frames import chosen
from pt_peft.data.problems import Remark, log_remark

_TRANSPOSITION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by EXIF orientation."""
_NEW_SUBFILE_TYPE = 254
_NO_IMAGE = 0b101
"""Bits of TIFF's NewSubfileType: a smaller copy of another page, a mask of another page (TIFF 6.0, section 8)."""
_SUB_IFDS = 330
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ONE_PICTURE = ("MPO", "PSD")
"""Formats whose first picture is the image: further ones are previews or depths (CIPA DC-007), or its layers."""


class Described(NamedTuple):
    """What a file says of its pictures, before any is decoded."""

    frames: int
    """The number of frames or pages."""
    patient: str | None
    """DICOM's patient ID; None where it has none."""


def described(stream: BinaryIO) -> Described:
    """Reads how many pictures a file has, and whose. Raises any error of the decoder."""
    if not is_dicom(stream):
        return Described(len(_pages(Image.open(stream))), None)
    data = read_header(stream)
    return Described(frame_count(data), str(data.get("PatientID") or "").strip() or None)


def stored_image(stream: BinaryIO, frame: int | None = None, remark: Remark = log_remark) -> Image.Image:
    """The image of a file as stored, or as DICOM displays it.

    Args:
        stream: the file.
        frame: the frame or page, counted from 0; None: the only one.
        remark: takes what is odd about the image.

    Raises:
        ValueError: if there are several frames to choose from, or not the one that is asked for.
        Exception: any error of the decoder.
    """
    if is_dicom(stream):
        return read_dicom(stream, frame, remark)
    image = Image.open(stream)
    if image.format == "PNG":
        image.verify()  # the check sums, which Pillow leaves out when it decodes: damaged pixels would be taken
        stream.seek(0)
        image = Image.open(stream)
    pages = _pages(image)
    image.seek(pages[chosen(frame, len(pages))])
    if image.format == "PPM" and image.mode == "I":  # of 16 bits, which Pillow has scaled to all of them
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return _black_is_zero(image)
    return image


def _black_is_zero(image: Image.Image) -> Image.Image:
    """A grey TIFF whose 0 is white, with 0 for black. Pillow turns up to 8 bits by itself, and no more."""
    if image.mode not in ("I;16", "I;16B", "F"):
        return image
    values = np.asarray(image)
    return Image.fromarray(-values if image.mode == "F" else ~values)


def _pages(image: Image.Image) -> list[int]:
    """The frames of a file that are images of their own. Raises ValueError for a camera's raw file."""
    count = 1 if image.format in _ONE_PICTURE else getattr(image, "n_frames", 1)
    if not isinstance(image, TiffImageFile):
        return list(range(count))
    pages: list[int] = []
    for page in range(count):
        image.seek(page)
        kind = image.tag_v2.get(_NEW_SUBFILE_TYPE)
        if not (isinstance(kind, int) and kind & _NO_IMAGE):  # damaged, it may be anything
            pages.append(page)
    if not pages and _SUB_IFDS in image.tag_v2:  # DNG, NEF: what the sensor saw is in a directory of its own
        raise ValueError("is a camera's raw file, of which only a small preview can be read; save it as PNG or TIFF")
    return pages or [0]


def upright(image: Image.Image, remark: Remark = log_remark) -> Image.Image:
    """The image turned as its EXIF orientation says. Nothing else of EXIF is read: other fields may be broken."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # Pillow raises anything for damaged EXIF
        remark("EXIF that cannot be read", f"has EXIF data that cannot be read ({error}); it is taken to be upright")
        return image
    method = _TRANSPOSITION.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def opaque(image: Image.Image) -> Image.Image:
    """The image on black, as nothing looks in medical images, where it is transparent; hidden colours do not appear.

    Returns:
        The image itself if nothing of it can be transparent; else an image of mode RGBA.
    """
    if not image.has_transparency_data or image.mode.startswith("I;16"):
        return image
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, (0, 0, 0, 255)), shown)
