"""One image of a source, before any pixel is decoded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


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
    """The site the source says the image came from."""


def strata(labels: Sequence[tuple[int, ...]]) -> list[int]:
    """One class an image, by which images are stratified: its rarest, so that rare ones are spread as is meant; the number
    after the highest class for an image of no class. Of images with one label each: that label.
    """
    counts = Counter(label for one in labels for label in one)
    none = 1 + max(counts, default=-1)
    return [min(one, key=lambda label: (counts[label], label), default=none) for one in labels]


def targets(labels: Sequence[tuple[int, ...]], classes: int, multilabel: bool) -> np.ndarray:
    """What a loss takes: int64 (N,), or uint8 (N,`classes`) of zeros and ones if `multilabel`."""
    if not multilabel:
        return np.array([label for (label,) in labels], np.int64)
    array = np.zeros((len(labels), classes), np.uint8)
    for row, one in enumerate(labels):
        array[row, list(one)] = 1
    return array
