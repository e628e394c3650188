"""Tensors as they are."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec
from pt_peft.exchange.tensors import TensorSpec


class Float32(Codec):
    """Four bytes a value, exact."""

    name: Literal["float32"] = "float32"

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        return {"": spec}

    def write(self, key: str, value: np.ndarray, random: np.random.Generator | None) -> dict[str, np.ndarray]:
        return {"": value}

    def read(self, key: str, parts: Mapping[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
        return parts[""]
