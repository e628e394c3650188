"""Tensors on the way between server and sites: one safetensors blob whose header is deflated, never a pickle.

FLARE writes of each array that it is one, how it was written, and a header padded to 128 bytes, 300 bytes in all: a twentieth of an
adapter whose tensors have a few thousand bytes, a fifth if they travel as int8. The names in a safetensors header are much alike.
"""

import zlib

import safetensors.numpy
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.datum import DatumManager
from safetensors import SafetensorError

from pt_peft.exchange.tensors import Tensors, safetensors_bytes

_LENGTH = 8
"""Bytes before a safetensors header, and here before a deflated one, that say how long it is (little-endian)."""
_LONGEST = 100_000_000
"""Of a safetensors header, in bytes; its reader refuses longer ones."""


class WireTensors(dict):
    """`Tensors` that travel so. A filter that makes a plain dict of them costs bytes and nothing else."""


class WireTensorsDecomposer(fobs.Decomposer):
    """Tells FLARE how; registered where this module is imported."""

    def supported_type(self) -> type:
        return WireTensors

    def decompose(self, target: Tensors, manager: DatumManager | None = None) -> bytes:
        blob = safetensors_bytes(target)
        end = _LENGTH + int.from_bytes(blob[:_LENGTH], "little")
        header = zlib.compress(blob[_LENGTH:end])
        return b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(blob)[end:]))

    def recompose(self, data: bytes, manager: DatumManager | None = None) -> WireTensors:
        """Raises SafetensorError for bytes that are no such blob: FLARE drops the message."""
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        try:
            header = zlib.decompressobj().decompress(data[_LENGTH:end], _LONGEST)
            blob = b"".join((len(header).to_bytes(_LENGTH, "little"), header, memoryview(data)[end:]))
            return WireTensors(safetensors.numpy.load(blob))
        except (zlib.error, KeyError, TypeError, ValueError) as error:  # the latter for types that numpy has not
            raise SafetensorError(f"not a deflated header and tensors: {error}") from None


fobs.register(WireTensorsDecomposer)
