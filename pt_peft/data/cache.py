"""Decoded images, kept in memory-mapped files so that a restarted process does not decode them again."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from pydantic import JsonValue

from pt_peft import __version__
from pt_peft.data.items import SPLITS, SplitName
from pt_peft.data.sources import SiteImages
from pt_peft.errors import UserError

TRANSFORM_VERSION = 1
"""Raise it when the deterministic transforms give other pixels than before."""

_DESCRIPTION = "cache.json"
_logger = logging.getLogger(__name__)


class Arrays(NamedTuple):
    """The decoded images of one split."""

    images: np.ndarray
    """uint8 (N,3,S,S), memory-mapped, read-only."""
    labels: np.ndarray
    """int64 (N,)."""


def cached_arrays(folder: Path, images: SiteImages, size: int) -> Mapping[SplitName, Arrays]:
    """The decoded `images` of each split, from the cache `folder`; decoded into it first where they are not there yet.

    Any number of processes may ask for the same images at once: one decodes, the others wait for it.

    Args:
        size: side of the decoded images, pixels.

    Raises:
        UserError: if the folder cannot be written or is full, or an image cannot be decoded.
    """
    key = {
        "images": images.key(),
        "image_size": size,
        "transform_version": TRANSFORM_VERSION,
        "package_version": __version__,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    entry = folder / digest
    arrays = _open(entry)
    if arrays is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{digest}.lock"):
                arrays = _open(entry) or _build(entry, images, size, key)
        except OSError as error:
            raise UserError(
                f"image cache {folder}: cannot be written ({error.strerror or error}); give it space and permission, or set"
                " 'cache' in site.json to another folder."
            ) from None
    return arrays


def _open(entry: Path) -> dict[SplitName, Arrays] | None:
    """The arrays of a complete entry, or None."""
    try:
        counts = json.loads((entry / _DESCRIPTION).read_text(encoding="utf-8"))["counts"]
        arrays = {split: _open_split(entry, split) for split in SPLITS}
        whole = all(len(a.images) == len(a.labels) == counts[split] for split, a in arrays.items())
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return arrays if whole else None


def _open_split(entry: Path, split: SplitName) -> Arrays:
    images = np.load(_images_file(entry, split), mmap_mode="r", allow_pickle=False)
    return Arrays(images, np.load(_labels_file(entry, split), allow_pickle=False))


def _build(entry: Path, images: SiteImages, size: int, key: JsonValue) -> dict[SplitName, Arrays]:
    """Decodes into a folder beside `entry`, which takes its place when complete. The caller holds the entry's lock."""
    counts = images.counts()
    total = sum(counts.values())
    _logger.info("preparing %d images of %d px in %s", total, size, entry)
    start = time.perf_counter()
    partial = entry.with_suffix(".partial")
    _remove(partial)  # left by a process that was killed
    partial.mkdir()
    try:
        for split in SPLITS:
            _write_split(partial, split, images, counts[split], size)
        description = json.dumps({"key": key, "counts": counts}, indent=2).encode()
        _write(partial / _DESCRIPTION, description)
        _remove(entry)  # there only if damaged
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _logger.info("prepared %d images in %.1f s", total, time.perf_counter() - start)
    return {split: _open_split(entry, split) for split in SPLITS}


def _write_split(folder: Path, split: SplitName, images: SiteImages, count: int, size: int) -> None:
    """Writes image after image, so that one is in memory at a time and a full disk is an error (writing to a memory map,
    it would be SIGBUS)."""
    labels = np.empty(count, np.int64)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    with open(_images_file(folder, split), "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        if count:
            for index, (image, labels[index]) in enumerate(images.decoded(split, size)):
                file.write(np.ascontiguousarray(image))
        _sync(file)
    with open(_labels_file(folder, split), "wb") as file:
        np.lib.format.write_array(file, labels, allow_pickle=False)
        _sync(file)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)  # a file where a folder should be


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        _sync(file)


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _images_file(folder: Path, split: SplitName) -> Path:
    return folder / f"{split}_images.npy"


def _labels_file(folder: Path, split: SplitName) -> Path:
    return folder / f"{split}_labels.npy"
