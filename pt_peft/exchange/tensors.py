"""Exchanged tensors as they travel: named numpy arrays, checked on arrival. Imports no torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

Tensors = dict[str, np.ndarray]


class TensorError(Exception):
    """Tensors that are not what they should be; names the tensor, what it is and what is right."""


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


def check_tensors(tensors: object, specs: Mapping[str, TensorSpec]) -> Tensors:
    """Returns `tensors` if they are exactly what `specs` says, with finite values.

    Raises:
        TensorError: for something that is no mapping of arrays, a missing or an extra key, a wrong shape or dtype, or
            a value that is not finite.
    """
    if not isinstance(tensors, Mapping):
        raise TensorError(f"payload is a {type(tensors).__name__}, not tensors by key")
    for kind, keys in (("missing", specs.keys() - tensors.keys()), ("not allowed", tensors.keys() - specs.keys())):
        if keys:
            named = ", ".join(repr(key)[:100] for key in sorted(keys, key=str)[:3])
            raise TensorError(f"{len(keys)} tensor(s) {kind}: {named}{', …' if len(keys) > 3 else ''}")
    for key, spec in specs.items():
        value = tensors[key]
        # No subclass either: a masked array hides values, others carry attributes.
        if type(value) is not np.ndarray:
            raise TensorError(f"tensor '{key}' is a {type(value).__name__}, not an array")
        seen = TensorSpec(tuple(value.shape), str(value.dtype))
        if seen.shape != tuple(spec.shape):
            raise TensorError(f"tensor '{key}' has shape {seen.shape}, not {tuple(spec.shape)}")
        if seen.dtype != spec.dtype:
            raise TensorError(f"tensor '{key}' has dtype {seen.dtype}, not {spec.dtype}")
        if not np.isfinite(value).all():
            raise TensorError(f"tensor '{key}' has {int((~np.isfinite(value)).sum())} value(s) that are not finite")
    return dict(tensors)


def payload_bytes(tensors: Mapping[str, np.ndarray]) -> int:
    """Raw size of the tensors in bytes, without any framing."""
    return sum(value.nbytes for value in tensors.values())


def payload_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over key, dtype, shape and bytes of each tensor in the order of their keys."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = np.ascontiguousarray(tensors[key])
        digest.update(f"{key}\0{value.dtype}\0{value.shape}\0".encode())
        digest.update(value.data)
    return digest.hexdigest()


def payload_l2_norm(tensors: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm over all values, accumulated in float64."""
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in tensors.values())))


def safetensors_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """`tensors` as the content of a safetensors file."""
    # What is not contiguous it would write in another order; `ascontiguousarray` would give numbers an axis.
    return safetensors.numpy.save({key: value.copy(order="C") for key, value in tensors.items()}, metadata)
