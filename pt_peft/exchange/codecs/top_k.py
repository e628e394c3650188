"""The few largest entries (Aji and Heafield 2017, arXiv:1704.05021)."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.codecs.base import Codec
from pt_peft.exchange.tensors import TensorError, TensorSpec


class TopK(Codec):
    """Of each tensor the entries of largest magnitude, exact, in float32; the others are zero. An entry takes 5 to 8 bytes:
    its place in the flattened tensor is in the smallest of uint8, uint16 and uint32 that has room for all.
    """

    name: Literal["top_k"]
    fraction: float = Field(default=0.1, gt=0, le=1)
    """Part of a tensor's entries, rounded up."""
    error_feedback: bool = True
    """Whether a site keeps what it has not sent and adds it to its next change."""

    @property
    def remembers(self) -> bool:
        return self.error_feedback

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        count = self._count(spec.size)
        dtype = np.min_scalar_type(max(spec.size - 1, 0))
        return {"/indices": TensorSpec((count,), str(dtype)), "/values": TensorSpec((count,), "float32")}

    def write(self, key: str, value: np.ndarray, random: np.random.Generator | None) -> dict[str, np.ndarray]:
        flat = value.reshape(-1)
        others = flat.size - self._count(flat.size)
        chosen = np.sort(np.argpartition(np.abs(flat), others)[others:]) if flat.size else np.arange(0)
        return {"/indices": chosen.astype(np.min_scalar_type(max(flat.size - 1, 0))), "/values": flat[chosen]}

    def read(self, key: str, parts: Mapping[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
        indices = parts["/indices"].astype(np.int64)
        if (np.diff(indices) <= 0).any():
            raise TensorError(f"tensor '{key}/indices' is not in rising order, each once")
        if indices.size and indices[-1] >= spec.size:
            raise TensorError(f"tensor '{key}/indices' has {indices[-1]}, but '{key}' has {spec.size} value(s)")
        whole = np.zeros(spec.size, np.float32)
        whole[indices] = parts["/values"]
        return whole.reshape(spec.shape)

    def _count(self, size: int) -> int:
        # Of the decimal number that was written: 0.07 times 100 is 7, and a little more in floating point.
        return math.ceil(Fraction(str(self.fraction)) * size)
