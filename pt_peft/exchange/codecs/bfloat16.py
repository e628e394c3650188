"""The upper half of a float32: 8 bits of exponent, 7 of fraction."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec, too_large
from pt_peft.exchange.tensors import Array, Tensors, TensorSpec

LARGEST = 3.3895313892515355e38
"""Largest value that can be written."""
_EXPONENT = 0x7F80
"""The bits of the exponent. All are set in infinities and in what is no number."""


class BFloat16(Codec):
    """Two bytes a value; their bits travel as uint16, as numpy has no such type.

    A value is read within 2^-8 of itself, and one below 2^-126 within 2^-134 in absolute terms. A value that would
    round beyond 3.39e38 is an error.
    """

    name: Literal["bfloat16"]

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """One part of two bytes a value."""
        return {"": TensorSpec(spec.shape, "uint16")}

    def write(self, key: str, value: Array, random: np.random.Generator | None) -> Tensors:
        """Rounds to nearest, to even between two. Raises UserError for values beyond `LARGEST`."""
        bits = np.ascontiguousarray(value).view(np.uint32).reshape(value.shape)
        # Adds half of what is cut off, less one if the last bit that stays is even.
        written = np.asarray((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, np.uint16)
        beyond = written & _EXPONENT == _EXPONENT
        if beyond.any():
            raise too_large(key, int(beyond.sum()), self.name, LARGEST)
        return {"": written}

    def read(self, key: str, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """Widens the values to float32."""
        return np.asarray(parts[""].astype(np.uint32) << 16).view(np.float32)
