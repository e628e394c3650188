"""IEEE half precision: 5 bits of exponent, 10 of fraction."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec, too_large
from pt_peft.exchange.tensors import Array, Tensors, TensorSpec

LARGEST = 65504.0
"""Largest value that can be written."""


class Float16(Codec):
    """Two bytes a value.

    A value of a magnitude of 2^-14 or more is read within 2^-11 of itself. The error of a smaller one is at most 2^-25
    in absolute terms, which may be all of it. A value that would round beyond 65504 is an error, as it would become
    infinite.
    """

    name: Literal["float16"]

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """One part of two bytes a value."""
        return {"": TensorSpec(spec.shape, "float16")}

    def write(self, key: str, value: Array, random: np.random.Generator | None) -> Tensors:
        """Rounds to nearest. Raises UserError for values beyond `LARGEST`."""
        with np.errstate(over="ignore"):
            written = value.astype(np.float16)
        if not np.isfinite(written).all():
            raise too_large(key, int(np.isinf(written).sum()), self.name, LARGEST)
        return {"": written}

    def read(self, key: str, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """Widens the values to float32."""
        return parts[""].astype(np.float32)
