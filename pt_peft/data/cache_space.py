"""The disk space of the image cache; least recently used entries are evicted for new ones."""

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from pt_peft.errors import UserError

_MARK = "cache.json"
PROMISE = "promised_bytes"
"""File in the folder of an unfinished entry: the bytes that it will take."""
_logger = logging.getLogger(__name__)


def pixel_bytes(count: int, size: int) -> int:
    """Bytes of `count` cached images of side `size`, pixels."""
    return count * 3 * size * size


def make_room(partial: Path, needed: int, limit_gb: float) -> int:
    """Makes the folder of a new cache entry, and room for it.

    The least recently used entries beside it are evicted until the new entry and those that other processes are making
    fit within the limit. A process that has mapped an evicted entry keeps it; its disk space is free when the process
    ends.

    Args:
        partial: the folder to make.
        needed: size of the new entry, bytes.
        limit_gb: the most that the cache may hold, 10^9 bytes.

    Returns:
        Bytes of the entries that remain.

    Raises:
        UserError: if the new entry does not fit within the limit or on the disk.
    """
    folder, limit = partial.parent, limit_gb * 1e9
    if needed > limit:
        raise UserError(
            f"image cache {folder}: the images need {needed / 1e9:.2f} GB, but 'cache_gb' in site.json is "
            f"{limit_gb:g}; a greater value, or a smaller backbone.image_size, would be right."
        )
    with FileLock(folder / "room.lock"):
        _sweep(folder)
        entries = sorted((_last_use(path), _bytes(path), path) for path in folder.iterdir() if _is_entry(path))
        held = sum(size for _, size, _ in entries)
        promised = sum(_promised(path) for path in folder.glob("*.partial"))
        for _, size, path in entries:
            if held + promised + needed <= limit:
                break
            _evict(path)
            held -= size
        if held + promised + needed > limit:
            raise UserError(
                f"image cache {folder}: the images need {needed / 1e9:.2f} GB and others that are being prepared "
                f"{promised / 1e9:.2f} GB, but 'cache_gb' in site.json is {limit_gb:g}; a greater value would be right."
            )
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"image cache {folder}: the images need {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB "
                "free; set 'cache' in site.json to a folder with more space."
            )
        partial.mkdir()
        (partial / PROMISE).write_text(str(needed), encoding="ascii")
    return held


def _is_entry(path: Path) -> bool:
    return not path.suffix and (path / _MARK).is_file()


def _promised(partial: Path) -> int:
    try:
        return int((partial / PROMISE).read_text(encoding="ascii"))
    except (OSError, ValueError):  # it has just been finished
        return 0


def _sweep(folder: Path) -> None:
    """Removes the unfinished and half-removed entries of killed processes."""
    for path in [*folder.glob("*.removed"), *folder.glob("*.partial")]:
        lock = FileLock(path.with_suffix(".lock"))
        try:
            with lock.acquire(blocking=False):
                shutil.rmtree(path, ignore_errors=True)
        except Timeout:  # a process is making it
            pass


def _evict(path: Path) -> None:
    _logger.info("removing %s from the cache", path)
    doomed = path.with_suffix(".removed")
    try:
        os.rename(path, doomed)  # atomic, so that no process opens half an entry
    except OSError:  # another process was faster
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _last_use(path: Path) -> float:
    return (path / _MARK).stat().st_mtime


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())
