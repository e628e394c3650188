"""The image files a table refers to: members of a folder or of a zip archive."""

import io
import os
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from pt_peft.errors import UserError


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


@contextmanager
def open_archive(path: Path) -> Generator[OpenArchive]:
    """Yields the function that opens the images of a folder or zip archive. Raises UserError if `path` is neither."""
    if path.is_dir():
        yield lambda name: _open_file(path / name)
        return
    with opened_zip(path) as archive:
        # Reads the whole member at once: decoders seek, which is slow in a compressed member.
        yield lambda name: io.BytesIO(archive.read(name))


@contextmanager
def opened_zip(path: Path) -> Generator[zipfile.ZipFile]:
    """Yields the zip archive. Raises UserError if it is none."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is neither a folder nor a readable zip archive ({error}).") from None
    with archive:
        yield archive


def _open_file(file: Path) -> BinaryIO:
    if not file.is_file():
        if file.is_symlink():
            raise OSError(f"is a link to '{os.readlink(file)}', which is not there or cannot be reached")
        if file.exists():  # opening a pipe would wait
            raise OSError("is not a file")
    return file.open("rb")


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
