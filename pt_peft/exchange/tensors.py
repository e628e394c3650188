"""Exchanged tensors: named numpy arrays, checked on arrival. Imports no torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pt_peft import reasons
from pt_peft.errors import ReasonedError

Array = npt.NDArray[Any]
"""A numpy array of any shape and dtype."""
Tensors = dict[str, Array]
"""Arrays by key. Exchanged tensors have the keys that `pt_peft.exchange.schedule.Exchange` lists."""


class TensorError(ReasonedError):
    """Tensors are not what they should be. The message names the tensor, what it is and what would be right."""

    def __init__(self, message: str, tensor: str | None = None):
        """Keeps the message.

        Args:
            message: the sentence.
            tensor: key of the tensor that is wrong, if it is one.
        """
        super().__init__(message, tensor, reason=reasons.Payload(tensor=tensor and tensor[:200]))


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one exchanged tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * np.dtype(self.dtype).itemsize


def mapping_of(payload: object, expected: str) -> Mapping[object, object]:
    """Returns `payload` if it is a mapping; its keys and values may be anything.

    Raises:
        TensorError: if it is not; the message says that `expected` by key would be right.
    """
    if not isinstance(payload, Mapping):
        raise TensorError(f"payload is a {type(payload).__name__}, not {expected} by key")
    return cast(Mapping[object, object], payload)  # isinstance tells pyright nothing about keys and values


def check_tensors(payload: object, specs: Mapping[str, TensorSpec]) -> Tensors:
    """Returns `payload` as tensors if it is exactly what `specs` says, with finite values.

    Raises:
        TensorError: if it is no mapping of arrays, a key is missing or not allowed, a shape or dtype is wrong, or a
            value is not finite.
    """
    tensors = mapping_of(payload, "tensors")
    for kind, keys in (("missing", specs.keys() - tensors.keys()), ("not allowed", tensors.keys() - specs.keys())):
        if keys:
            named = ", ".join(repr(key)[:100] for key in sorted(keys, key=str)[:3])
            raise TensorError(f"{len(keys)} tensor(s) {kind}: {named}{', …' if len(keys) > 3 else ''}")
    for key, spec in specs.items():
        value = tensors[key]
        # No subclass either: a masked array hides values, others carry attributes.
        if type(value) is not np.ndarray:
            raise TensorError(f"tensor '{key}' is a {type(value).__name__}, not an array", key)
        seen = TensorSpec(tuple(value.shape), str(value.dtype))
        if seen.shape != tuple(spec.shape):
            raise TensorError(f"tensor '{key}' has shape {seen.shape}, not {tuple(spec.shape)}", key)
        if seen.dtype != spec.dtype:
            raise TensorError(f"tensor '{key}' has dtype {seen.dtype}, not {spec.dtype}", key)
        if not np.isfinite(value).all():
            raise TensorError(
                f"tensor '{key}' has {int((~np.isfinite(value)).sum())} value(s) that are not finite", key
            )
    return cast(Tensors, dict(tensors))  # each key and value was checked above


class Sized(Protocol):
    """An array, or the spec of one."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...


def payload_bytes(payload: Mapping[str, Sized]) -> int:
    """Bytes of a payload without any framing, from its arrays or from their specs."""
    return sum(value.nbytes for value in payload.values())


def payload_sha256(tensors: Mapping[str, Array]) -> str:
    """SHA-256 in hex over key, dtype, shape and bytes of each tensor, in the order of their keys.

    Key, dtype and shape are UTF-8 as Python prints them, each followed by a zero byte; the bytes are row-major.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = np.asarray(tensors[key], order="C")  # `ascontiguousarray` would give a number an axis
        digest.update(f"{key}\0{value.dtype}\0{value.shape}\0".encode())
        digest.update(value.data)
    return digest.hexdigest()


def payload_l2_norm(tensors: Mapping[str, Array]) -> float:
    """Euclidean norm over all values, accumulated in float64."""
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in tensors.values())))


def safetensors_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """Returns the content of a safetensors file that holds `tensors`."""
    # safetensors writes what is not contiguous in another order; `ascontiguousarray` would give numbers an axis.
    return safetensors.numpy.save({key: value.copy(order="C") for key, value in tensors.items()}, metadata)
