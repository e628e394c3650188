"""Which files are images: a name says so, or the content."""

from typing import BinaryIO

from PIL import Image

NAMES_OF_IMAGES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm"),
    *(".dcm", ".dicom"),
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".j2k", ".jxr", ".dng", ".nef", ".cr2", ".cr3", ".arw"),
)
"""Ends of names, in lower case, by which a file is meant to be an image, so that its content need not be looked at to
list it. If it is none, it is an image that cannot be read. So is a phone's or camera's that nothing here decodes."""

NAMES_OF_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
"""Ends of names, in lower case, of files that may have images in them."""

FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN"),
    *("TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
"""Pillow's formats of pictures that it decodes by itself and knows by their header."""


def named_as_image(name: str) -> bool:
    """Whether the name of a file says that it is an image."""
    return name.lower().endswith(NAMES_OF_IMAGES)


def is_image(stream: BinaryIO) -> bool:
    """Whether a file's header is that of an image: one of `FORMATS`, or DICOM that has pixels.

    Decodes nothing, and reads little but of a DICOM file, whose header may be long.

    Args:
        stream: the file, at its start.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        Image.open(stream, formats=FORMATS)
        return True
    except Image.DecompressionBombError:  # an image, if a large one
        return True
    except Exception:  # Pillow's parsers raise anything for a file that begins like an image, such as a text with 'BM'
        stream.seek(0)
    return _is_picture_of_dicom(stream)


def _is_picture_of_dicom(stream: BinaryIO) -> bool:
    """Whether the file is DICOM with pixels, unlike a DICOMDIR, a report or a presentation state."""
    import pydicom  # slow, and most folders need it not

    from pt_peft.data.dicom import is_dicom

    if not is_dicom(stream):
        return False
    try:
        header = pydicom.dcmread(  # pyright: ignore[reportUnknownMemberType]  # a bare PathLike in its signature
            stream, stop_before_pixels=True, force=True, specific_tags=["Rows"]
        )
    except Exception:  # damaged: an image that cannot be read, which is said later
        return True
    return "Rows" in header
