"""Decoded images, kept in memory-mapped files so that a restarted process does not decode them again."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from pydantic import JsonValue

from pt_peft.data.cache_space import PROMISE, make_room, pixel_bytes
from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.pixel_code import pixel_code
from pt_peft.data.pixels import SiteImages
from pt_peft.errors import UserError
from pt_peft.experiment.preprocessing import Decoding
from pt_peft.experiment.site import Site

DESCRIPTION = "cache.json"
_logger = logging.getLogger(__name__)


class Cached(NamedTuple):
    """The decoded images of one split."""

    images: npt.NDArray[np.uint8]
    """uint8 (N,3,S,S), memory-mapped, read-only."""
    items: list[Item]
    """The images' descriptions, in the same order, without those that could not be read."""
    entry: Path
    """The folder in the cache that holds the images."""


def cached_images(site: Site, images: SiteImages, decoding: Decoding) -> Mapping[SplitName, Cached]:
    """The decoded images of each split, from the cache; they are decoded into it first if it lacks them.

    Any number of processes may ask for the same images at once: one decodes, the others wait for it.

    Args:
        site: the site, whose settings place and bound the cache.
        images: the site's images.
        decoding: how they become pixels.

    Raises:
        UserError: if the cache cannot be written, its limit or the disk is too small, or more images cannot be decoded
            than ``max_unreadable`` allows.
    """
    key: JsonValue = {"images": images.key(), "decoding": decoding.model_dump(mode="json"), "code": pixel_code()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = site.cache_folder()
    entry = folder / digest
    opened = _open(entry, site, images, decoding.image_size)
    if opened is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{digest}.lock"):
                opened = _open(entry, site, images, decoding.image_size) or _build(entry, site, images, decoding, key)
        except OSError as error:
            raise UserError(
                f"image cache {folder}: cannot be written ({error.strerror or error}); give it space and permission, "
                "or set 'cache' in site.json to another folder."
            ) from None
    return opened


def _open(entry: Path, site: Site, images: SiteImages, size: int) -> dict[SplitName, Cached] | None:
    """The images of a complete entry, which is marked as used; None also if it lacks more than the site allows now."""
    try:
        unreadable = json.loads((entry / DESCRIPTION).read_text(encoding="utf-8"))["unreadable"]
        opened: dict[SplitName, Cached] = {}
        for split in SPLITS:
            left_out = set(unreadable[split])
            pixels = np.load(_file(entry, split), mmap_mode="r", allow_pickle=False)
            items = [item for item in images.items(split) if item.file not in left_out]
            if pixels.shape != (len(items), 3, size, size) or pixels.dtype != np.uint8:
                return None
            opened[split] = Cached(pixels, items, entry)
        count = sum(len(unreadable[split]) for split in SPLITS)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if count > site.allowed_unreadable(count + sum(len(one.items) for one in opened.values())):
        return None
    with suppress(OSError):  # the cache of another user
        os.utime(entry / DESCRIPTION)
    if count:
        _logger.warning("%d images that could not be read are left out; %s names them", count, entry / DESCRIPTION)
    return opened


def _build(entry: Path, site: Site, images: SiteImages, decoding: Decoding, key: JsonValue) -> dict[SplitName, Cached]:
    """Decodes into a folder that then replaces `entry`. The caller holds the lock of the entry."""
    total, size = sum(len(images.items(split)) for split in SPLITS), decoding.image_size
    start = time.perf_counter()
    unreadable = _Unreadable(total, site)
    with new_entry(entry, pixel_bytes(total, size), site.cache_gb) as (partial, held):
        _logger.info("preparing %d images of %d px in %s", total, size, entry)
        names = {split: _write_split(partial, split, images, decoding, unreadable) for split in SPLITS}
        with synced(partial / DESCRIPTION) as file:
            file.write(json.dumps({"key": key, "unreadable": names}, indent=2).encode())
    gigabytes = (held + pixel_bytes(total, size)) / 1e9
    _logger.info(
        "prepared %d images in %.1f s; the cache holds %.2f of at most %g GB",
        total - unreadable.count,
        time.perf_counter() - start,
        gigabytes,
        site.cache_gb,
    )
    opened = _open(entry, site, images, decoding.image_size)
    if opened is None:
        raise UserError(
            f"image cache {entry.parent}: another process has evicted the images at once; 'cache_gb' in site.json "
            f"({site.cache_gb:g}) is too small for all processes that run here."
        )
    return opened


@contextmanager
def new_entry(entry: Path, needed: int, limit_gb: float) -> Generator[tuple[Path, int]]:
    """Yields a folder that replaces `entry` when the context ends without an error. The caller holds the entry's lock.

    Args:
        entry: the folder of the finished entry.
        needed: size of the entry, bytes.
        limit_gb: the most that the cache may hold, 10^9 bytes.

    Yields:
        The folder to fill, and the bytes of all other entries.

    Raises:
        UserError: as `make_room` does.
    """
    partial = entry.with_suffix(".partial")
    _remove(partial)  # left by a process that was killed
    held = make_room(partial, needed, limit_gb)
    try:
        yield partial, held
        (partial / PROMISE).unlink()
        _remove(entry)  # exists only if damaged
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Unreadable:
    """Counts images that cannot be read; raises UserError if they are too many."""

    def __init__(self, total: int, site: Site):
        self.count = 0
        self._allowed = site.allowed_unreadable(total)
        self._rule = (
            f"of {total} images, 'max_unreadable' in site.json ({site.max_unreadable:g}) allows {self._allowed}"
        )

    def add(self, error: UserError) -> None:
        self.count += 1
        if self.count > self._allowed:
            raise UserError(f"{error} It is image {self.count} that cannot be read; {self._rule}.")
        _logger.warning("%s It is left out: %s.", error, self._rule)


def _write_split(
    folder: Path, split: SplitName, images: SiteImages, decoding: Decoding, unreadable: _Unreadable
) -> list[str]:
    """Writes the images of a split and returns the files that cannot be read.

    One image is in memory at a time. A full disk raises OSError; writing to a memory map it would be SIGBUS.
    """
    left_out: list[str] = []
    items = images.items(split)
    with synced(_file(folder, split)) as file:
        _write_header(file, len(items), decoding.image_size)
        for item, image in zip(items, images.decoded(split, decoding) if items else (), strict=True):
            if isinstance(image, UserError):
                unreadable.add(image)
                left_out.append(item.file)
            else:
                file.write(np.ascontiguousarray(image).data)
        file.seek(0)
        _write_header(file, len(items) - len(left_out), decoding.image_size)
    return left_out


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    """Writes the header of an ``.npy`` file; numpy pads it, so that another count fits in its place."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    )


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)  # a file where a folder should be


@contextmanager
def synced(path: Path) -> Generator[BinaryIO]:
    """Opens a new file, which is on the disk when the context ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _file(folder: Path, split: SplitName) -> Path:
    return folder / f"{split}_images.npy"
