"""One image of a source, before any pixel is decoded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
Labels = npt.NDArray[np.int64 | np.uint8]
"""Labels of N images as a loss takes them, see `targets`."""
NOT_KNOWN = 255
"""Instead of 1 or 0 for ``multilabel``: the training loss leaves out whether the image has the class."""


@dataclass(frozen=True, slots=True)
class Item:
    """What a source knows of an image without reading it."""

    file: str
    """Path inside the folder or archive, unique in its source; ``<split>/<index>`` for ``npz``."""
    labels: tuple[int, ...]
    """Indices into ``data.classes``, ascending: one, or any number where ``data.task`` is ``multilabel``."""
    split: SplitName | None
    """None until `splits.assign_splits` has drawn it."""
    group: str
    """Images of one group (patient, lesion) stay together; the file itself where images are not grouped."""
    site: str | None = None
    """The site that the source names as the image's origin."""
    values: tuple[str, ...] = ()
    """The site's own values that mean `labels`, as its source has them."""
    not_known: tuple[int, ...] = ()
    """Indices of classes that the image may have or not, ascending; only for ``multilabel``."""


class SplitCounts(TypedDict):
    """The number of images in a split."""

    images: int
    classes: dict[str, int]
    """Images of each class; an image of several classes counts for each of them."""


def split_counts(items: Sequence[Item], classes: Sequence[str]) -> SplitCounts:
    """Counts `items`, the images of one split, by class; `classes` are the names of the labels."""
    labels = Counter(label for item in items for label in item.labels)
    return {"images": len(items), "classes": {name: labels[index] for index, name in enumerate(classes)}}


def strata(labels: Sequence[tuple[int, ...]]) -> list[int]:
    """The class by which each image is stratified.

    An image with one label has that label. An image with several has the rarest, so that rare classes are spread as
    they should be. An image without a label has the number after the highest label.
    """
    counts = Counter(label for one in labels for label in one)
    none = 1 + max(counts, default=-1)
    return [min(one, key=lambda label: (counts[label], label), default=none) for one in labels]


def targets(items: Sequence[Item], classes: int, multilabel: bool) -> Labels:
    """The labels as a loss takes them: int64 (N,), or if `multilabel` uint8 (N,`classes`): 1, 0 or `NOT_KNOWN`."""
    if not multilabel:
        return np.array([label for item in items for label in item.labels], np.int64)
    array = np.zeros((len(items), classes), np.uint8)
    for row, item in enumerate(items):
        array[row, list(item.labels)] = 1
        array[row, list(item.not_known)] = NOT_KNOWN
    return array
