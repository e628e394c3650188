"""Features of images from the frozen part of a model, kept in the site's cache beside the decoded images.

They are always computed from the images in their order and in batches of one size. So they are the same, bit for bit,
whether they come from the cache or are computed for the first time or again.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from pydantic import JsonValue

from pt_peft.data.cache import DESCRIPTION, new_entry, synced
from pt_peft.data.site_data import CachedAs, FeatureSplit, ImageSplit
from pt_peft.errors import UserError

BATCH = 64
_FILE = "features.npy"
_logger = logging.getLogger(__name__)

Features = npt.NDArray[np.float32]
Compute = Callable[[npt.NDArray[np.uint8]], Features]
"""From images uint8 (B,3,S,S) to features float32 (B,…)."""


def with_features(split: ImageSplit, key: JsonValue, compute: Compute) -> FeatureSplit | None:
    """The features of `split`, computed first if the cache lacks them.

    Args:
        split: the images.
        key: everything that the features depend on besides the images.
        compute: the frozen part of the model.

    Returns:
        None if the features cannot be kept: the images do not come from the cache, or the cache is too small or cannot
        be written.
    """
    if split.cached is None or not len(split):
        return None
    images = hashlib.sha256((split.cached.entry / DESCRIPTION).read_bytes()).hexdigest()
    whole: JsonValue = {"images": images, "split": split.cached.split, "batch": BATCH, "features": key}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    entry = split.cached.entry.with_name(digest)
    try:
        features = _open(entry, len(split))
        if features is None:
            with FileLock(entry.with_suffix(".lock")):
                features = _open(entry, len(split))
                if features is None:
                    features = _build(entry, split.images, split.cached, whole, compute)
    except (OSError, UserError) as error:
        _logger.warning("the features of the frozen part of the model are computed anew each time: %s", error)
        return None
    return FeatureSplit(features, split.labels)


def _open(entry: Path, count: int) -> Features | None:
    """The features of a complete entry, which is marked as used, or None."""
    try:
        features = np.load(entry / _FILE, mmap_mode="r", allow_pickle=False)
        (entry / DESCRIPTION).touch()
    except (OSError, EOFError, ValueError):
        return None
    return features if len(features) == count and features.dtype == np.float32 else None


def _build(entry: Path, images: npt.NDArray[np.uint8], cached: CachedAs, key: JsonValue, compute: Compute) -> Features:
    """Computes the features into a folder that then replaces `entry`. The caller holds the lock of the entry."""
    first = compute(images[:BATCH])
    shape = (len(images), *first.shape[1:])
    needed, limit = 4 * math.prod(shape), cached.limit_gb
    if needed + images.nbytes > 1e9 * limit:  # the features would evict their own images
        raise UserError(f"they take {needed / 1e9:.2f} GB beside the images, but 'cache_gb' in site.json is {limit:g}.")
    (cached.entry / DESCRIPTION).touch()  # used now, so that the images are evicted last
    with new_entry(entry, needed, limit) as (partial, _):
        with synced(partial / _FILE) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for start in range(0, len(images), BATCH):
                features = compute(images[start : start + BATCH]) if start else first
                file.write(np.ascontiguousarray(features).data)
        with synced(partial / DESCRIPTION) as file:
            file.write(json.dumps({"key": key}, indent=2).encode())
    features = _open(entry, len(images))
    if features is None:
        raise UserError(f"image cache {entry.parent}: another process has evicted the features at once.")
    return features
