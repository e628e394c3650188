"""Tensors as they are."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.codecs.base import Codec, Draw
from pt_peft.tensors import Tensors, TensorSpec, check_tensors


class Float32(Codec):
    """Four bytes a value, exact."""

    name: Literal["float32"] = "float32"

    def specs(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        return dict(specs)

    def encode(self, tensors: Mapping[str, np.ndarray], draw: Draw | None = None) -> Tensors:
        return dict(tensors)

    def decode(self, payload: object, specs: Mapping[str, TensorSpec]) -> Tensors:
        return check_tensors(payload, specs)
