"""What the frozen part of a model makes of images, kept in the site's cache beside the decoded images.

It is always computed from the images in their order and in batches of one size, so that it is the same, bit for bit, whether
it was there already, is computed for the first time or again.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from pydantic import JsonValue

from pt_peft.data.cache import DESCRIPTION, new_entry, synced
from pt_peft.data.site_data import Split
from pt_peft.errors import UserError

BATCH = 64
_FILE = "features.npy"
_logger = logging.getLogger(__name__)

Compute = Callable[[np.ndarray], np.ndarray]
"""Of images uint8 (B,3,S,S), features float32 (B,…)."""


def with_features(split: Split, key: JsonValue, compute: Compute) -> Split | None:
    """`split` with features in place of images, computed first where the cache lacks them.

    Args:
        key: all that they depend on besides the images.

    Returns:
        None where they cannot be kept: the split's images are in no cache, or the cache is too small or cannot be written.
    """
    if split.cached is None or not len(split):
        return None
    images = hashlib.sha256((split.cached.entry / DESCRIPTION).read_bytes()).hexdigest()
    whole = {"images": images, "split": split.cached.split, "features": key}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    entry = split.cached.entry.with_name(digest)
    try:
        features = _open(entry, len(split))
        if features is None:
            with FileLock(entry.with_suffix(".lock")):
                features = _open(entry, len(split))
                if features is None:
                    features = _build(entry, split, whole, compute)
    except (OSError, UserError) as error:
        _logger.warning("what the frozen part of the model makes of the images is computed anew each time: %s", error)
        return None
    return Split(features, split.labels)


def _open(entry: Path, count: int) -> np.ndarray | None:
    """A complete entry, marked as used, or None."""
    try:
        features = np.load(entry / _FILE, mmap_mode="r", allow_pickle=False)
        (entry / DESCRIPTION).touch()
    except (OSError, EOFError, ValueError):
        return None
    return features if len(features) == count and features.dtype == np.float32 else None


def _build(entry: Path, split: Split, key: JsonValue, compute: Compute) -> np.ndarray:
    """Computes into a folder beside `entry`, which takes its place when complete. The caller holds the entry's lock."""
    first = compute(split.images[:BATCH])
    shape = (len(split), *first.shape[1:])
    needed, limit = 4 * math.prod(shape), split.cached.limit_gb
    if needed + split.images.nbytes > 1e9 * limit:  # else the images would give way to what is made of them
        raise UserError(f"it takes {needed / 1e9:.2f} GB beside the images, but 'cache_gb' in site.json is {limit:g}.")
    (split.cached.entry / DESCRIPTION).touch()  # as for the least recently used entry, to give way last
    with new_entry(entry, needed, limit) as (partial, _):
        with synced(partial / _FILE) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for start in range(0, len(split), BATCH):
                features = compute(split.images[start : start + BATCH]) if start else first
                file.write(np.ascontiguousarray(features))
        with synced(partial / DESCRIPTION) as file:
            file.write(json.dumps({"key": key}, indent=2).encode())
    features = _open(entry, len(split))
    if features is None:
        raise UserError(f"image cache {entry.parent}: the features' place was taken at once by another process.")
    return features
