"""The image files a table refers to: members of a folder or of a zip archive."""

import io
import os
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from pt_peft.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom")
"""The ends of the names of image files."""


class OpenArchive(Protocol):
    """Opens an image file by its name in the archive."""

    def __call__(self, name: str) -> BinaryIO:
        """Raises OSError or KeyError if the file does not exist or cannot be opened."""
        ...


def stamp(path: Path, names: Sequence[str]) -> list[tuple[int, int]]:
    """Sizes (bytes) and modification times (ns), which change when the images do.

    They are those of the zip archive `path`, or of each of the files `names` in the folder `path`, in order; zeros for
    a file that does not exist.
    """
    files = [path / name for name in names] if path.is_dir() else [path]
    return [_size_and_time(file) for file in files]


def listed_files(path: Path) -> list[str]:
    """The names of the image files in the folder or zip archive `path`, sorted; links are followed.

    Raises:
        UserError: if `path` is neither, a folder in it cannot be read, or a file is not named in UTF-8.
    """
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in _walked(path)]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [one.filename for one in archive.infolist() if not one.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is neither a folder nor a readable zip archive ({error}).") from None
    # Operating systems leave hidden files and folders beside the images.
    hidden = (".", "__MACOSX")
    images = {
        name
        for name in names
        if name.lower().endswith(SUFFIXES) and not any(part.startswith(hidden) for part in name.split("/"))
    }
    for name in images:
        if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"{path}: file {name!a} is not named in UTF-8; rename it.")
    return sorted(images)


def _walked(path: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}).")

    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder that contains it
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder) / file for file in files if (Path(folder) / file).is_file())


@contextmanager
def open_archive(path: Path) -> Generator[OpenArchive]:
    """Yields the function that opens the images of a folder or zip archive. Raises UserError if `path` is neither."""
    if path.is_dir():
        yield lambda name: _open_file(path / name)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is neither a folder nor a readable zip archive ({error}).") from None
    with archive:
        # Reads the whole member at once: decoders seek, which is slow in a compressed member.
        yield lambda name: io.BytesIO(archive.read(name))


def _open_file(file: Path) -> BinaryIO:
    if file.exists() and not file.is_file():  # opening a pipe would wait
        raise OSError("is not a file")
    return file.open("rb")


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
