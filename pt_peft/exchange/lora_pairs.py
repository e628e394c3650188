"""The factors of LoRA's updates B A, found by the names of their tensors. Imports no torch.

A: (r, d_in), named ``….lora_A``;  B: (d_out, r), named ``….lora_B``
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pt_peft.exchange.tensors import Array, Tensors, TensorSpec

RESIDUAL = "lora_residual"
"""Name of the tensor (d_out, d_in) that is added to B A, see `pt_peft.methods.lora`."""
_RANK_AXIS = {"lora_A": 0, "lora_B": 1}


@dataclass(frozen=True)
class Pair:
    """Keys of the tensors of one adapted layer."""

    layer: str
    """The layer's path, e.g. ``blocks.3.attn.qkv``."""

    @property
    def a(self) -> str:
        """Key of A."""
        return f"{self.layer}.lora_A"

    @property
    def b(self) -> str:
        """Key of B."""
        return f"{self.layer}.lora_B"

    @property
    def residual(self) -> str:
        """Key of the residual, which only some aggregations have."""
        return f"{self.layer}.{RESIDUAL}"


def pairs(keys: Iterable[str]) -> list[Pair]:
    """The layers both of whose factors are in `keys`, sorted by path."""
    keys = set(keys)
    layers = sorted(key.removesuffix(".lora_A") for key in keys if key.endswith(".lora_A"))
    return [Pair(layer) for layer in layers if Pair(layer).b in keys]


def rank_axis(key: str) -> int | None:
    """The axis of the tensor `key` that has one entry for each of LoRA's r components; None if it has no such axis."""
    return _RANK_AXIS.get(key.rpartition(".")[2])


def spec_at_rank(key: str, spec: TensorSpec, rank: int) -> TensorSpec:
    """`spec` with `rank` components."""
    axis = rank_axis(key)
    if axis is None:
        return spec
    return TensorSpec((*spec.shape[:axis], rank, *spec.shape[axis + 1 :]), spec.dtype)


def sliced(tensors: Mapping[str, Array], rank: int | None) -> Tensors:
    """Copies the first `rank` components of the factors; other tensors stay as they are. None keeps all components."""
    if rank is None:
        return dict(tensors)
    return {
        key: value if rank_axis(key) is None else value.take(range(rank), rank_axis(key))
        for key, value in tensors.items()
    }


def padded(tensors: Mapping[str, Array], specs: Mapping[str, TensorSpec]) -> Tensors:
    """Pads `tensors` with zeros to the shapes of `specs`, where a factor has fewer components."""
    whole: Tensors = {}
    for key, value in tensors.items():
        missing = [(0, wanted - present) for wanted, present in zip(specs[key].shape, value.shape, strict=True)]
        whole[key] = np.pad(value, missing) if any(after for _, after in missing) else value
    return whole
