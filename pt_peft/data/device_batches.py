"""Batches of a split on a GPU.

A split lies there as a whole where it fits, as uint8; what a batch needs besides, the places of its images and what
augmentation draws for them, are a few numbers of each image. Where it does not fit, a thread gathers each batch while
the GPU computes on the one before. Conversion and augmentation are the GPU's either way. Nothing waits for the GPU.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import finalize

import numpy as np
import numpy.typing as npt
import torch

from pt_peft import gpu
from pt_peft.data.augmentation import Augmentation
from pt_peft.data.site_data import FeatureSplit, ImageSplit
from pt_peft.data.views import LARGEST, Drawn, augmented

SHARE = 0.5
"""The most that splits take of the memory that is there for them and for the model's own computing."""
_CHUNK = 2**26
"""Bytes that are copied to the device at a time."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Gathered:
    """What the device needs of a batch."""

    index: tuple[torch.Tensor, ...]
    """Where the batch's values lie in the whole split; empty if they are in `values`."""
    values: torch.Tensor | None
    labels: torch.Tensor
    drawn: Drawn | None


class DeviceSplits:
    """The splits of a trainer's sites in the memory of its GPU, as far as they fit, and batches of them.

    A split stays until others need its place, so that a round finds what the round before has copied. Splits from the
    cache are known by their folders there, others as long as their arrays exist.
    """

    def __init__(self, device: torch.device, room: Callable[[torch.device], int] = gpu.room):
        """Holds nothing yet.

        Args:
            device: where the batches are made.
            room: bytes that are free there.
        """
        self._device = device
        self._room = room
        self._held: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._largest = LARGEST.to(device)

    def batches(
        self,
        split: ImageSplit | FeatureSplit,
        chosen: Iterable[Sequence[int] | npt.NDArray[np.int64]],
        augmentation: Augmentation | None,
        *,
        ahead: bool,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches as `pt_peft.data.site_data.batches` yields them, on the device.

        Args:
            split: the images or features.
            chosen: the places of each batch's images in `split`.
            augmentation: draws for one batch after the other.
            ahead: whether `chosen` and the draws may be asked for before their turn.
        """
        whole = self._whole(split)
        gathered = (self._gathered(split, np.asarray(places), augmentation, whole) for places in chosen)
        for one in _ahead(gathered) if ahead and whole is None else gathered:
            labels = self._to_device(one.labels)
            values = self._to_device(one.values) if one.values is not None else None
            if whole is not None:
                values = whole[tuple(self._to_device(index) for index in one.index)]
            assert values is not None
            if isinstance(split, FeatureSplit):
                yield values.float(), labels
                continue
            drawn = one.drawn
            if drawn:
                drawn = Drawn(self._to_device(drawn.views), tuple(self._to_device(each) for each in drawn.intensities))
            yield augmented(values, drawn, self._largest), labels

    def _gathered(
        self,
        split: ImageSplit | FeatureSplit,
        places: npt.NDArray[np.int64],
        augmentation: Augmentation | None,
        whole: torch.Tensor | None,
    ) -> _Gathered:
        drawn = augmentation.draw(len(places)) if augmentation else None
        index = (places.astype(np.int64),)
        if isinstance(split, FeatureSplit):
            views = drawn.views.numpy() if drawn else np.zeros(len(places), np.int64)
            index = (*index, np.searchsorted(split.views, views))
        values = None if whole is not None else self._pinned(torch.as_tensor(_values(split)[index]))
        if drawn:
            drawn = Drawn(self._pinned(drawn.views), tuple(self._pinned(one) for one in drawn.intensities))
        pinned = tuple(self._pinned(torch.as_tensor(one)) for one in index) if values is None else ()
        return _Gathered(pinned, values, self._pinned(torch.as_tensor(split.labels[places])), drawn)

    def _whole(self, split: ImageSplit | FeatureSplit) -> torch.Tensor | None:
        """All values of `split` on the device; None if they do not fit."""
        values = _values(split)
        if isinstance(split, FeatureSplit):
            key = split.entry
        else:
            key = split.cached and (split.cached.entry, split.cached.split)
        known: Hashable = key or id(values)
        if known in self._held:
            self._held.move_to_end(known)
            return self._held[known]
        held = sum(one.nbytes for one in self._held.values())
        limit = SHARE * (held + self._room(self._device))
        if values.nbytes > limit:
            return None
        while held + values.nbytes > limit:
            held -= self._held.popitem(last=False)[1].nbytes
        whole = torch.empty(values.shape, dtype=_DTYPES[values.dtype.name], device=self._device)
        rows = max(1, _CHUNK * len(values) // max(1, values.nbytes))
        for start in range(0, len(values), rows):
            whole[start : start + rows].copy_(torch.tensor(values[start : start + rows]))
        self._held[known] = whole
        if key is None:
            finalize(values, self._held.pop, known, None).atexit = False
        return whole

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` where the device can fetch it from by itself."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)


_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}


def _values(split: ImageSplit | FeatureSplit) -> npt.NDArray[Any]:
    return split.features if isinstance(split, FeatureSplit) else split.images


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields `items`, of which a thread makes the next two meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(2))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
