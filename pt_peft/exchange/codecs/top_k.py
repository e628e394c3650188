"""Writes the few largest entries of a tensor (Aji and Heafield 2017, arXiv:1704.05021)."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.codecs.base import Codec
from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec


class TopK(Codec):
    """The entries of largest magnitude of each tensor, exact, in float32; other entries are read as zero.

    An entry takes 5 to 8 bytes: its place in the flattened tensor is written in the smallest of uint8, uint16 and
    uint32 that can hold all places.
    """

    name: Literal["top_k"]
    fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of a tensor's entries that are sent, in (0, 1]; their number is rounded up."""
    error_feedback: bool = True
    """Whether a site keeps the entries that it has not sent and adds them to its next change."""

    @property
    def remembers(self) -> bool:
        """As ``error_feedback`` says."""
        return self.error_feedback

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """The chosen entries' places and values."""
        count = self._count(spec.size)
        dtype = np.min_scalar_type(max(spec.size - 1, 0))
        return {"/indices": TensorSpec((count,), str(dtype)), "/values": TensorSpec((count,), "float32")}

    def write(self, key: str, value: Array, random: np.random.Generator | None) -> Tensors:
        """Keeps the entries of largest magnitude, in the order of their places."""
        flat = value.reshape(-1)
        others = flat.size - self._count(flat.size)
        chosen = np.sort(np.argpartition(np.abs(flat), others)[others:]) if flat.size else np.arange(0)
        return {"/indices": chosen.astype(np.min_scalar_type(max(flat.size - 1, 0))), "/values": flat[chosen]}

    def read(self, key: str, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """Fills other entries with zeros. Raises TensorError for places out of order or range."""
        indices = parts["/indices"].astype(np.int64)
        if (np.diff(indices) <= 0).any():
            raise TensorError(f"tensor '{key}/indices' is not in rising order, each once", key)
        if indices.size and indices[-1] >= spec.size:
            raise TensorError(f"tensor '{key}/indices' has {indices[-1]}, but '{key}' has {spec.size} value(s)", key)
        whole = np.zeros(spec.size, np.float32)
        whole[indices] = parts["/values"]
        return whole.reshape(spec.shape)

    def _count(self, size: int) -> int:
        # As a decimal number: 0.07 times 100 is 7, but a little more in floating point.
        return math.ceil(Fraction(str(self.fraction)) * size)
