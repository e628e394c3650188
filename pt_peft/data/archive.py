"""The image files a table refers to: members of a folder or of a zip archive."""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from pt_peft.errors import UserError


class OpenArchive(Protocol):
    """Opens an image file by its name in the archive."""

    def __call__(self, name: str) -> BinaryIO: ...


def stamp(path: Path, names: Sequence[str]) -> list[tuple[int, int]]:
    """Size (bytes) and modification time (ns) of the zip archive, or of each named file of the folder, in order: they
    change when the images do. Zeros for a file that is not there."""
    files = [path / name for name in names] if path.is_dir() else [path]
    return [_size_and_time(file) for file in files]


@contextmanager
def open_archive(path: Path) -> Iterator[OpenArchive]:
    """What opens the images of the folder or zip archive `path` by name; it raises OSError or KeyError for one that is not
    there.

    Raises:
        UserError: if `path` is neither.
    """
    if path.is_dir():
        yield lambda name: (path / name).open("rb")
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is neither a folder nor a readable zip archive ({error}).") from None
    with archive:
        # The whole member at once: decoders seek, which a compressed member does slowly.
        yield lambda name: io.BytesIO(archive.read(name))


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
