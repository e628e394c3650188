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
    change when the images do.

    Raises:
        UserError: if a folder lacks a file.
    """
    files = [path / name for name in names] if path.is_dir() else [path]
    return [_size_and_time(file, path) for file in files]


@contextmanager
def open_archive(path: Path, names: Sequence[str]) -> Iterator[OpenArchive]:
    """What opens the images `names` of the folder or zip archive `path`.

    Raises:
        UserError: if `path` is neither, or lacks one of the names.
    """
    if path.is_dir():
        yield lambda name: (path / name).open("rb")
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is neither a folder nor a readable zip archive ({error}).") from None
    with archive:
        there = set(archive.namelist())
        for name in names:
            if name not in there:
                raise UserError(_missing(name, path))
        # The whole member at once: decoders seek, which a compressed member does slowly.
        yield lambda name: io.BytesIO(archive.read(name))


def _size_and_time(file: Path, archive: Path) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        raise UserError(_missing(file.relative_to(archive), archive)) from None
    return status.st_size, status.st_mtime_ns


def _missing(name: object, archive: Path) -> str:
    return f"{archive}: has no image '{name}', which the table lists."
