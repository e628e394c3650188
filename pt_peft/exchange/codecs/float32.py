"""Writes tensors as they are."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec
from pt_peft.exchange.tensors import Array, Tensors, TensorSpec


class Float32(Codec):
    """Four bytes a value, exact."""

    name: Literal["float32"] = "float32"

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """One part: the tensor itself."""
        return {"": spec}

    def write(self, key: str, value: Array, random: np.random.Generator | None) -> Tensors:
        """Returns the tensor as it is."""
        return {"": value}

    def read(self, key: str, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """Returns the part as it is."""
        return parts[""]
