"""How much disk the image cache takes, and which entries give way to new ones."""

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from pt_peft.errors import UserError

_MARK = "cache.json"
PROMISE = "promised_bytes"
"""In the folder of an entry that is being made."""
_logger = logging.getLogger(__name__)


def pixel_bytes(count: int, size: int) -> int:
    """Bytes of `count` cached images of side `size`."""
    return count * 3 * size * size


def make_room(partial: Path, needed: int, limit_gb: float) -> int:
    """Makes the folder `partial` of a new cache entry, and room for it: entries beside it that were used least recently are
    removed until `needed` bytes more, and those that other builders have been promised, stay within `limit_gb`. A process
    that has mapped a removed entry keeps it; its disk is free when the process ends.

    Returns:
        Bytes of the entries that are left.

    Raises:
        UserError: if they do not fit within the limit or on the disk.
    """
    folder, limit = partial.parent, limit_gb * 1e9
    if needed > limit:
        raise UserError(
            f"image cache {folder}: the images need {needed / 1e9:.2f} GB, but 'cache_gb' in site.json is {limit_gb:g}; a "
            "greater value, or a smaller backbone.image_size, would be right."
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
                f"image cache {folder}: the images need {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free; set "
                "'cache' in site.json to a folder with more space."
            )
        partial.mkdir()
        (partial / PROMISE).write_text(str(needed), encoding="ascii")
    return held


def _is_entry(path: Path) -> bool:
    return not path.suffix and (path / _MARK).is_file()


def _promised(partial: Path) -> int:
    try:
        return int((partial / PROMISE).read_text(encoding="ascii"))
    except (OSError, ValueError):  # just finished
        return 0


def _sweep(folder: Path) -> None:
    """Removes what killed processes left."""
    for path in [*folder.glob("*.removed"), *folder.glob("*.partial")]:
        lock = FileLock(path.with_suffix(".lock"))
        try:
            with lock.acquire(blocking=False):
                shutil.rmtree(path, ignore_errors=True)
        except Timeout:  # its builder is at work
            pass


def _evict(path: Path) -> None:
    _logger.info("removing %s from the cache", path)
    doomed = path.with_suffix(".removed")
    try:
        os.rename(path, doomed)  # at once, so that no one opens half an entry
    except OSError:  # someone else was faster
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _last_use(path: Path) -> float:
    return (path / _MARK).stat().st_mtime


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())
