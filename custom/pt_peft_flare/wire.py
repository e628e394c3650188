"""Tensors on the way between server and sites: one safetensors blob whose header is deflated, never a pickle.

FLARE adds about 300 bytes to each array: that it is one, how it was written, and a header padded to 128 bytes. That is
a twentieth of an adapter whose tensors have a few thousand bytes, a fifth if they travel as int8. The names in a
safetensors header are much alike, so that it deflates well.

The blob is a datum of its own beside the rest of a message: what does not belong to it is small, and may be held to be
(`gate`). Sizes are checked before content: a megabyte of deflated header could be a gigabyte of empty tensors.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.numpy
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.datum import Datum, DatumManager
from safetensors import SafetensorError

from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec, payload_bytes, safetensors_bytes

_LENGTH = 8
"""Bytes before a safetensors header, and here before a deflated one, that say how long it is (little-endian)."""
_ENTRY = 150
"""Most bytes of a tensor's entry in a header beside its name and shape: dtype, offsets, quotes."""
_DIGITS = 21
"""Most bytes of one length of a shape in a header."""


@dataclass(frozen=True)
class Bounds:
    """How large a payload may be."""

    header: int
    """Bytes of the inflated header, by which also the number of tensors is bounded."""
    data: int | None = None
    """Bytes of the tensors; None for any number."""

    @classmethod
    def of(cls, *payloads: Mapping[str, TensorSpec]) -> "Bounds":
        """The bounds of any payload of tensors from one of `payloads`."""
        entries = (
            sum(len(key.encode()) * 2 + _ENTRY + _DIGITS * len(spec.shape) for key, spec in specs.items())
            for specs in payloads
        )
        return cls(_ENTRY + max(entries), max(map(payload_bytes, payloads)))


BEFORE = Bounds(header=1 << 20)
"""Before a process knows what travels: header of some seven thousand tensors, at most twenty thousand empty ones."""
_bounds = BEFORE


def expect(bounds: Bounds) -> None:
    """Sets how large what comes to this process from now on may be."""
    global _bounds
    _bounds = bounds


class WireTensors(dict[str, Array]):
    """`Tensors` that travel as one blob. A filter that makes a plain dict of them costs bytes and nothing else."""


class Unreadable(WireTensors):
    """What comes in place of tensors that could not be read: none, and why.

    Not an error: FLARE ends the server's process of a job at the first message that it cannot read.
    """

    def __init__(self, reason: str = "the payload could not be read") -> None:
        """A payload that could not be read because of `reason`."""
        super().__init__()
        self.reason = reason


def come(payload: object) -> object:
    """Returns `payload` as it has come. Raises TensorError if it could not be read."""
    if isinstance(payload, Unreadable):
        raise TensorError(payload.reason)
    return payload


def packed(tensors: Tensors) -> bytes:
    """The bytes of `tensors` on the wire: length of the header (8 bytes), deflated header, data."""
    blob = safetensors_bytes(tensors)
    end = _LENGTH + int.from_bytes(blob[:_LENGTH], "little")
    header = zlib.compress(blob[_LENGTH:end])
    return b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(blob)[end:]))


def unpacked(content: bytes, bounds: Bounds) -> WireTensors:
    """Reads what `packed` wrote. Raises TensorError for anything else, and for what is larger than `bounds`."""
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if bounds.data is not None and (nbytes := len(content) - end) > bounds.data:
        raise TensorError(f"payload has {nbytes} bytes of tensors; at most {bounds.data} would be right")
    inflate = zlib.decompressobj()
    try:
        header = inflate.decompress(memoryview(content)[_LENGTH:end], bounds.header + 1)
        if len(header) > bounds.header:
            raise TensorError(f"the header of the payload has more than {bounds.header} bytes")
        blob = b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(content)[end:]))
        return WireTensors(safetensors.numpy.load(blob))
    # TypeError, for instance, for bfloat16
    except (zlib.error, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TensorError(f"payload is no deflated header and tensors ({error})") from None


class WireTensorsDecomposer(fobs.Decomposer):
    """Tells FLARE how `WireTensors` travel; registered where this module is imported."""

    def supported_type(self) -> type:
        """The type that this class writes and reads."""
        return WireTensors

    def decompose(self, target: Tensors, manager: DatumManager | None = None) -> Datum:
        """The bytes of `target`, as a datum beside the message."""
        return Datum.blob_datum(packed(target))

    def recompose(self, data: object, manager: DatumManager | None = None) -> WireTensors:
        """Reads what `decompose` wrote; `Unreadable` for anything else, and for more than this process expects."""
        content = data.value if isinstance(data, Datum) else data
        if not isinstance(content, bytes):
            return Unreadable(f"payload is a {type(content).__name__}, not bytes")
        try:
            return unpacked(content, _bounds)
        except TensorError as error:
            return Unreadable(str(error))


fobs.register(WireTensorsDecomposer)
