"""Which values stand in which ciphertext, and what ciphertexts look like from outside. Imports no torch and no tenseal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pt_peft.exchange.tensors import TensorError, Tensors, TensorSpec

DEGREE = 8192
"""Of the polynomials."""
PRIME_BITS = (60, 40, 40)
"""Of the coefficient modulus; ciphertexts have all but the last, which is for switching keys."""
SCALE = 2.0**40
"""What values are multiplied by before they are rounded."""
SLOTS = DEGREE // 2
"""Values in a ciphertext."""
MOST_BYTES = 2 * DEGREE * (len(PRIME_BITS) - 1) * 8 + 1024
"""Of a ciphertext as it travels: two polynomials, a prime's remainder in eight bytes, and some framing."""
FEWEST_BYTES = 2 * DEGREE * sum(PRIME_BITS[:-1]) * 99 // 800
"""What looks random cannot be compressed: anything much shorter than its remainders is no encryption, but plain values in a
ciphertext's clothes, or polynomials of zeros that would fill the reader's memory."""
WEIGHT = "weight"
"""The key, beside a sum, of the sum of the weights, float64 (1,)."""
_LENGTH_DELIMITED, _FIXED_64 = 2, 1


@dataclass(frozen=True)
class Layout:
    """Of tensors as one flat vector in the order of their keys, in as many ciphertexts as it takes; zeros fill the last."""

    specs: Mapping[str, TensorSpec]

    @property
    def values(self) -> int:
        """Without the filling."""
        return sum(spec.size for spec in self.specs.values())

    @property
    def keys(self) -> list[str]:
        """Of the ciphertexts, in order."""
        return [f"ciphertext/{index:06d}" for index in range(math.ceil(self.values / SLOTS))]

    @property
    def most_bytes(self) -> int:
        """Of all ciphertexts together."""
        return len(self.keys) * MOST_BYTES

    def pack(self, tensors: Tensors) -> np.ndarray:
        """float64 (ciphertexts, SLOTS)."""
        rows = np.zeros(len(self.keys) * SLOTS)
        rows[: self.values] = np.concatenate([tensors[key].ravel() for key in sorted(self.specs)], dtype=np.float64)
        return rows.reshape(-1, SLOTS)

    def unpack(self, rows: np.ndarray) -> Tensors:
        """What `pack` has packed, in the tensors' own shapes and dtypes."""
        flat, tensors, start = rows.ravel(), {}, 0
        for key in sorted(self.specs):
            spec = self.specs[key]
            tensors[key] = flat[start : start + spec.size].reshape(spec.shape).astype(spec.dtype)
            start += spec.size
        return tensors

    def check(self, payload: object) -> dict[str, bytes]:
        """The ciphertexts of `payload` by key, if they are of the right number, sizes and framing: enough to hand them to
        tenseal. Whether they are sound is found there.

        Raises:
            TensorError: if they are not.
        """
        if not isinstance(payload, Mapping):
            raise TensorError(f"payload is a {type(payload).__name__}, not ciphertexts by key")
        if payload.keys() != set(self.keys):
            others = ", ".join(sorted(repr(key)[:100] for key in payload.keys() - set(self.keys))[:3])
            raise TensorError(
                f"payload has {len(payload)} entries, not just {len(self.keys)} ciphertexts{f'; not allowed: {others}' if others else ''}"
            )
        return {key: _content(key, payload[key]) for key in self.keys}

    def check_sum(self, payload: object) -> tuple[dict[str, bytes], float]:
        """As `check`, of a sum: the ciphertexts, and the sum of the weights. Raises TensorError."""
        weight = payload.get(WEIGHT) if isinstance(payload, Mapping) else None
        if (
            type(weight) is not np.ndarray
            or weight.shape != (1,)
            or weight.dtype != np.float64
            or not 1 <= weight[0] < 2**63
        ):
            raise TensorError(
                f"tensor '{WEIGHT}' is not the sum of weights, one number of 1 or more, without which a sum says nothing"
            )
        return self.check({key: value for key, value in payload.items() if key != WEIGHT}), float(weight[0])


def _content(key: str, value: object) -> bytes:
    if type(value) is not np.ndarray or value.ndim != 1 or value.dtype != np.uint8:
        raise TensorError(f"tensor '{key}' is no array of bytes, as a ciphertext is")
    if not FEWEST_BYTES <= value.size <= MOST_BYTES:
        raise TensorError(f"tensor '{key}' has {value.size} bytes; a ciphertext has {FEWEST_BYTES} to {MOST_BYTES}")
    content = value.tobytes()
    # A message of this length could also hold thousands of polynomials of zeros, which grow to gigabytes as they are read.
    fields = _fields(content)
    expected = [(1, _LENGTH_DELIMITED), (2, _LENGTH_DELIMITED), (3, _FIXED_64)]
    if [field[:2] for field in fields] != expected or fields[0][2] != _varint(SLOTS):
        raise TensorError(f"tensor '{key}' is not one ciphertext of {SLOTS} values")
    return content


def _fields(content: bytes) -> list[tuple[int, int, bytes]]:
    """Number, wire type and content of the fields of a protobuf message (https://protobuf.dev/programming-guides/encoding), as
    far as it has such as a ciphertext has; empty if it has others.
    """
    fields, start = [], 0
    try:
        while start < len(content) and len(fields) < 4:
            number, kind = content[start] >> 3, content[start] & 7
            start += 1
            length = 8
            if kind == _LENGTH_DELIMITED:
                length = shift = 0
                while True:
                    byte = content[start]
                    start += 1
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
            elif kind != _FIXED_64:
                return []
            if start + length > len(content):
                return []
            fields.append((number, kind, content[start : start + length]))
            start += length
    except IndexError:
        return []
    return fields


def _varint(value: int) -> bytes:
    content = b""
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])
