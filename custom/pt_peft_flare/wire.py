"""Tensors on the way between server and sites: one safetensors blob whose header is deflated, never a pickle.

FLARE adds about 300 bytes to each array: that it is one, how it was written, and a header padded to 128 bytes. That is
a twentieth of an adapter whose tensors have a few thousand bytes, a fifth if they travel as int8. The names in a
safetensors header are much alike, so that it deflates well.
"""

import zlib

import safetensors.numpy
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.datum import DatumManager
from safetensors import SafetensorError

from pt_peft.exchange.tensors import Array, Tensors, safetensors_bytes

_LENGTH = 8
"""Bytes before a safetensors header, and here before a deflated one, that say how long it is (little-endian)."""
_LONGEST = 100_000_000
"""Most bytes of a safetensors header; its reader refuses longer ones."""


class WireTensors(dict[str, Array]):
    """`Tensors` that travel as one blob. A filter that makes a plain dict of them costs bytes and nothing else."""


class WireTensorsDecomposer(fobs.Decomposer):
    """Tells FLARE how `WireTensors` travel; registered where this module is imported."""

    def supported_type(self) -> type:
        """The type that this class writes and reads."""
        return WireTensors

    def decompose(self, target: Tensors, manager: DatumManager | None = None) -> bytes:
        """The bytes of `target`: length of the header (8 bytes), deflated header, data."""
        blob = safetensors_bytes(target)
        end = _LENGTH + int.from_bytes(blob[:_LENGTH], "little")
        header = zlib.compress(blob[_LENGTH:end])
        return b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(blob)[end:]))

    def recompose(self, data: bytes, manager: DatumManager | None = None) -> WireTensors:
        """Reads what `decompose` wrote. Raises SafetensorError for other bytes: FLARE drops the message."""
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        try:
            header = zlib.decompressobj().decompress(data[_LENGTH:end], _LONGEST)
            blob = b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(data)[end:]))
            return WireTensors(safetensors.numpy.load(blob))
        except (zlib.error, KeyError, TypeError, ValueError) as error:  # TypeError, for instance, for bfloat16
            raise SafetensorError(f"not a deflated header and tensors: {error}") from None


fobs.register(WireTensorsDecomposer)
