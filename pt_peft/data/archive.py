"""The image files a table refers to: members of a folder or of a zip archive."""

import io
import os
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from pt_peft.errors import UserError

LARGEST_MEMBER = 2 * 10**9
"""Bytes of a zip archive's member once it is unpacked, which is in memory then: a file of megabytes can hold more."""


class OpenArchive(Protocol):
    """Opens an image file by its name in the archive."""

    def __call__(self, name: str) -> BinaryIO:
        """Raises OSError or KeyError if the file does not exist or cannot be opened."""
        ...


def stamp(path: Path, names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Sizes (bytes) and times of the last change of content and of status (ns), which change when the images do.

    Archives give the files that they unpack one time, and images without compression have one size: sites of one
    machine may have files of the same names, sizes and times of content. Nobody can set the time of status.

    They are those of the zip archive `path`, or of each of the files `names` in the folder `path`, in order; zeros for
    a file that does not exist.
    """
    files = [path / name for name in names] if path.is_dir() else [path]
    return [_size_and_times(file) for file in files]


@contextmanager
def open_archive(path: Path) -> Generator[OpenArchive]:
    """Yields the function that opens the images of a folder or zip archive. Raises UserError if `path` is neither."""
    if path.is_dir():
        yield lambda name: _open_file(path / name)
        return
    with opened_zip(path) as archive:
        yield lambda name: _read_member(archive, name)


@contextmanager
def opened_zip(path: Path) -> Generator[zipfile.ZipFile]:
    """Yields the zip archive. Raises UserError if it is none."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is neither a folder nor a readable zip archive ({error}).") from None
    with archive:
        yield archive


def _read_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A whole member: decoders seek, which is slow in a compressed one."""
    if (size := archive.getinfo(name).file_size) > LARGEST_MEMBER:
        raise OSError(f"has {size / 1e9:.1f} GB when it is unpacked; at most {LARGEST_MEMBER / 1e9:g} GB are read")
    return io.BytesIO(archive.read(name))


def _open_file(file: Path) -> BinaryIO:
    if not file.is_file():
        if file.is_symlink():
            raise OSError(f"is a link to '{os.readlink(file)}', which is not there or cannot be reached")
        if file.exists():  # opening a pipe would wait
            raise OSError("is not a file")
    return file.open("rb")


def _size_and_times(file: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
