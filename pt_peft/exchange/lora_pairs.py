"""The factors of LoRA's updates B A, by the names of their tensors. Imports no torch.

A: (r, d_in), named ``….lora_A``;  B: (d_out, r), named ``….lora_B``
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pt_peft.exchange.tensors import Tensors, TensorSpec

RESIDUAL = "lora_residual"
"""Name of the tensor (d_out, d_in) that is added to B A, see `pt_peft.methods.lora`."""
_RANK_AXIS = {"lora_A": 0, "lora_B": 1}


@dataclass(frozen=True)
class Pair:
    """The tensors of one adapted layer."""

    layer: str

    @property
    def a(self) -> str:
        return f"{self.layer}.lora_A"

    @property
    def b(self) -> str:
        return f"{self.layer}.lora_B"

    @property
    def residual(self) -> str:
        return f"{self.layer}.{RESIDUAL}"


def pairs(keys: Iterable[str]) -> list[Pair]:
    """Of the layers both of whose factors are among `keys`, sorted."""
    keys = set(keys)
    layers = sorted(key.removesuffix(".lora_A") for key in keys if key.endswith(".lora_A"))
    return [Pair(layer) for layer in layers if Pair(layer).b in keys]


def rank_axis(key: str) -> int | None:
    """The axis of the tensor `key` that has one entry for each of the r components; None if there is none."""
    return _RANK_AXIS.get(key.rpartition(".")[2])


def spec_at_rank(key: str, spec: TensorSpec, rank: int) -> TensorSpec:
    """`spec` with `rank` components."""
    axis = rank_axis(key)
    if axis is None:
        return spec
    return TensorSpec((*spec.shape[:axis], rank, *spec.shape[axis + 1 :]), spec.dtype)


def sliced(tensors: Mapping[str, np.ndarray], rank: int | None) -> Tensors:
    """The first `rank` components of the factors, copied, and all else as it is; None for all components."""
    if rank is None:
        return dict(tensors)
    return {
        key: value if rank_axis(key) is None else value.take(range(rank), rank_axis(key))
        for key, value in tensors.items()
    }


def padded(tensors: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> Tensors:
    """`tensors` in the shapes of `specs`: components that a factor does not have are zero."""
    whole = {}
    for key, value in tensors.items():
        missing = [(0, wanted - there) for wanted, there in zip(specs[key].shape, value.shape, strict=True)]
        whole[key] = np.pad(value, missing) if any(after for _, after in missing) else value
    return whole
