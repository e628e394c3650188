"""Features of images from the frozen part of a model, kept in the site's cache beside the decoded images.

They are always computed from the images in their order and in batches of one size. So they are the same, bit for bit,
whether they come from the cache or are computed for the first time or again.

Where training draws views of an image (`pt_peft.data.views`), the features of all views are kept, in half precision:
they take as much disk as single precision takes for half as many. If they do not all fit, none are kept: what a site
trains must not depend on its disk, and a view that is missing would have to be computed anyway.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from pydantic import JsonValue

from pt_peft.data.cache import DESCRIPTION, new_entry, synced
from pt_peft.data.site_data import CachedAs, FeatureSplit, ImageSplit
from pt_peft.data.views import view
from pt_peft.errors import UserError

BATCH = 64
_FILE = "features.npy"
_logger = logging.getLogger(__name__)

Features = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Compute = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""From images uint8 (B,3,S,S) to features float32 (B,…)."""


def with_features(split: ImageSplit, views: Sequence[int], key: JsonValue, compute: Compute) -> FeatureSplit | None:
    """The features of `split`, computed first if the cache lacks them: float32 of one view, float16 of several.

    Args:
        split: the images.
        views: numbers of the images' views, ascending.
        key: everything that the features depend on besides the images and the views.
        compute: the frozen part of the model.

    Returns:
        None if the features cannot be kept: the images do not come from the cache, the cache is too small or cannot be
        written, or a value is beyond float16.
    """
    if split.cached is None or not len(split):
        return None
    images = hashlib.sha256((split.cached.entry / DESCRIPTION).read_bytes()).hexdigest()
    dtype = dtype_of(views)
    whole: JsonValue = {
        "images": images, "split": split.cached.split, "batch": BATCH, "views": list(views), "dtype": str(dtype),
        "features": key,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    entry = split.cached.entry.with_name(digest)
    try:
        features = _open(entry, len(split), views)
        if features is None:
            with FileLock(entry.with_suffix(".lock")):
                features = _open(entry, len(split), views)
                if features is None:
                    features = _build(entry, split.images, split.cached, views, whole, compute)
    except (OSError, UserError) as error:
        _logger.warning("the features of the frozen part of the model are computed anew each time: %s", error)
        return None
    return FeatureSplit(features, tuple(views), split.labels, entry)


def dtype_of(views: Sequence[int]) -> np.dtype[Any]:
    """The dtype in which the features of `views` are kept."""
    return np.dtype(np.float32 if len(views) == 1 else np.float16)


def _open(entry: Path, count: int, views: Sequence[int]) -> Features | None:
    """The features of a complete entry, which is marked as used, or None."""
    try:
        features = np.load(entry / _FILE, mmap_mode="r", allow_pickle=False)
        (entry / DESCRIPTION).touch()
    except (OSError, EOFError, ValueError):
        return None
    return features if features.shape[:2] == (count, len(views)) and features.dtype == dtype_of(views) else None


def _build(
    entry: Path,
    images: npt.NDArray[np.uint8],
    cached: CachedAs,
    views: Sequence[int],
    key: JsonValue,
    compute: Compute,
) -> Features:
    """Computes the features into a folder that then replaces `entry`. The caller holds the lock of the entry."""
    dtype = dtype_of(views)
    shape = (len(images), len(views), *compute(images[:1]).shape[1:])
    needed, limit = dtype.itemsize * math.prod(shape), cached.limit_gb
    of_views = f" of {len(views)} views" if len(views) > 1 else ""
    if needed + images.nbytes > 1e9 * limit:  # the features would evict their own images
        raise UserError(
            f"those{of_views} take {needed / 1e9:.2f} GB beside the images, but 'cache_gb' in site.json is {limit:g}."
        )
    (cached.entry / DESCRIPTION).touch()  # used now, so that the images are evicted last
    with new_entry(entry, needed, limit) as (partial, _):
        _logger.info("computing features%s of %d images, %.2f GB, in %s", of_views, len(images), needed / 1e9, entry)
        with synced(partial / _FILE) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
            for start in range(0, len(images), BATCH):
                pixels = torch.tensor(images[start : start + BATCH])
                features = np.empty((len(pixels), *shape[1:]), dtype)
                for place, number in enumerate(views):
                    features[:, place] = _as_kept(compute(view(pixels, number).numpy()), dtype)
                file.write(features.data)
        with synced(partial / DESCRIPTION) as file:
            file.write(json.dumps({"key": key}, indent=2).encode())
    features = _open(entry, len(images), views)
    if features is None:
        raise UserError(f"image cache {entry.parent}: another process has evicted the features at once.")
    return features


def _as_kept(features: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`features` in `dtype`. Raises UserError if a value is beyond its range."""
    if (peak := float(np.abs(features).max())) > float(np.finfo(dtype).max):
        raise UserError(f"a value of {peak:.3g} is beyond {dtype}.")
    return features.astype(dtype)
