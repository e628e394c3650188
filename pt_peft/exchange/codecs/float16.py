"""IEEE half precision: 5 bits of exponent, 10 of fraction."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec, too_large
from pt_peft.exchange.tensors import TensorSpec

LARGEST = 65504.0


class Float16(Codec):
    """Two bytes a value, to nearest: within 2^-11 of the value, and of a value below 2^-14 within 2^-25. A value that would
    round beyond 65504 is an error, as it would be infinite.
    """

    name: Literal["float16"]

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        return {"": TensorSpec(spec.shape, "float16")}

    def write(self, key: str, value: np.ndarray, random: np.random.Generator | None) -> dict[str, np.ndarray]:
        with np.errstate(over="ignore"):
            written = value.astype(np.float16)
        if not np.isfinite(written).all():
            raise too_large(key, int(np.isinf(written).sum()), self.name, LARGEST)
        return {"": written}

    def read(self, key: str, parts: Mapping[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
        return parts[""].astype(np.float32)
