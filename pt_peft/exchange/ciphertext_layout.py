"""Which values are in which ciphertext, and what a ciphertext's bytes look like. Imports no torch and no tenseal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec, mapping_of

DEGREE = 8192
"""Degree of the polynomials."""
PRIME_BITS = (60, 40, 40)
"""Bits of the primes of the coefficient modulus. Ciphertexts use all but the last, which is for switching keys."""
SCALE = 2.0**40
"""CKKS multiplies values by this before it rounds them."""
SLOTS = DEGREE // 2
"""Values that a ciphertext holds."""
MOST_BYTES = 2 * DEGREE * (len(PRIME_BITS) - 1) * 8 + 1024
"""Most bytes of a ciphertext: two polynomials, eight bytes for each prime's remainder, and some framing."""
FEWEST_BYTES = 2 * DEGREE * sum(PRIME_BITS[:-1]) * 99 // 800
"""Fewest bytes of a ciphertext. What looks random cannot be compressed: anything much shorter holds plain values framed
as a ciphertext, or polynomials of zeros that would fill the reader's memory."""
WEIGHT = "weight"
"""Key of the sum of the sites' weights, float64 (1,), which travels beside the sum of their ciphertexts."""
_LENGTH_DELIMITED, _FIXED_64 = 2, 1


@dataclass(frozen=True)
class Layout:
    """Places tensors in ciphertexts: one flat vector in the order of their keys, cut into pieces of `SLOTS` values."""

    specs: Mapping[str, TensorSpec]

    @property
    def values(self) -> int:
        """Number of values of all tensors, without the zeros that fill the last ciphertext."""
        return sum(spec.size for spec in self.specs.values())

    @property
    def keys(self) -> list[str]:
        """Keys of the ciphertexts, in order."""
        return [f"ciphertext/{index:06d}" for index in range(math.ceil(self.values / SLOTS))]

    @property
    def most_bytes(self) -> int:
        """Most bytes of all ciphertexts together."""
        return len(self.keys) * MOST_BYTES

    def pack(self, tensors: Tensors) -> Array:
        """Writes `tensors` as rows, float64 (ciphertexts, SLOTS)."""
        rows = np.zeros(len(self.keys) * SLOTS)
        rows[: self.values] = np.concatenate([tensors[key].ravel() for key in sorted(self.specs)], dtype=np.float64)
        return rows.reshape(-1, SLOTS)

    def unpack(self, rows: Array) -> Tensors:
        """Reads the tensors, in their own shapes and dtypes, from rows as `pack` writes them."""
        flat, start = rows.ravel(), 0
        tensors: Tensors = {}
        for key in sorted(self.specs):
            spec = self.specs[key]
            tensors[key] = flat[start : start + spec.size].reshape(spec.shape).astype(spec.dtype)
            start += spec.size
        return tensors

    def check(self, payload: object) -> dict[str, bytes]:
        """Returns the bytes of the ciphertexts in `payload` by key, once their number, sizes and framing are right.

        That is enough to hand them to tenseal, which finds out whether they are sound.

        Raises:
            TensorError: if they are not right.
        """
        ciphertexts = mapping_of(payload, "ciphertexts")
        if set(ciphertexts) != set(self.keys):
            extra = ", ".join(sorted(repr(key)[:100] for key in ciphertexts.keys() - set(self.keys))[:3])
            raise TensorError(
                f"payload has {len(ciphertexts)} entries, not just {len(self.keys)} ciphertexts"
                + (f"; not allowed: {extra}" if extra else "")
            )
        return {key: _content(key, ciphertexts[key]) for key in self.keys}

    def check_sum(self, payload: object) -> tuple[dict[str, bytes], float]:
        """Checks a sum as `check` does, and returns its ciphertexts and the sum of the weights. Raises TensorError."""
        content = mapping_of(payload, "ciphertexts")
        weight = content.get(WEIGHT)
        if (
            type(weight) is not np.ndarray
            or weight.shape != (1,)
            or weight.dtype != np.float64
            or not 1 <= weight[0] < 2**63
        ):
            raise TensorError(
                f"tensor '{WEIGHT}' is not the sum of weights, one float64 of 1 or more, which a mean needs"
            )
        return self.check({key: value for key, value in content.items() if key != WEIGHT}), float(weight[0])


def _content(key: str, value: object) -> bytes:
    if type(value) is not np.ndarray or value.ndim != 1 or value.dtype != np.uint8:
        raise TensorError(f"tensor '{key}' is no array of bytes, as a ciphertext is", key)
    if not FEWEST_BYTES <= value.size <= MOST_BYTES:
        raise TensorError(
            f"tensor '{key}' has {value.size} bytes; a ciphertext has {FEWEST_BYTES} to {MOST_BYTES}", key
        )
    content = value.tobytes()
    # A message of this length could also hold thousands of polynomials of zeros, which take gigabytes once read.
    fields = _fields(content)
    expected = [(1, _LENGTH_DELIMITED), (2, _LENGTH_DELIMITED), (3, _FIXED_64)]
    if [field[:2] for field in fields] != expected or fields[0][2] != _varint(SLOTS):
        raise TensorError(f"tensor '{key}' is not one ciphertext of {SLOTS} values", key)
    return content


def _fields(content: bytes) -> list[tuple[int, int, bytes]]:
    """Reads number, wire type and content of the fields of a protobuf message.

    See https://protobuf.dev/programming-guides/encoding. Returns nothing for a message that has wire types which a
    ciphertext has not.
    """
    fields: list[tuple[int, int, bytes]] = []
    start = 0
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
