"""The upper half of a float32: 8 bits of exponent, 7 of fraction."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec, too_large
from pt_peft.exchange.tensors import TensorSpec

LARGEST = 3.3895313892515355e38
_EXPONENT = 0x7F80
"""Its bits, all set: infinite, or no number."""


class BFloat16(Codec):
    """Two bytes a value, to nearest, to even between two: within 2^-8 of the value (numpy has no such type, so that its bits
    travel as uint16), and of a value below 2^-126 within 2^-134. A value that would round beyond 3.39e38 is an error.
    """

    name: Literal["bfloat16"]

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        return {"": TensorSpec(spec.shape, "uint16")}

    def write(self, key: str, value: np.ndarray, random: np.random.Generator | None) -> dict[str, np.ndarray]:
        bits = np.ascontiguousarray(value).view(np.uint32).reshape(value.shape)
        # Half of what is cut off, less one if the last bit that stays is even.
        written = np.asarray((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, np.uint16)
        beyond = written & _EXPONENT == _EXPONENT
        if beyond.any():
            raise too_large(key, int(beyond.sum()), self.name, LARGEST)
        return {"": written}

    def read(self, key: str, parts: Mapping[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
        return np.asarray(parts[""].astype(np.uint32) << 16).view(np.float32)
