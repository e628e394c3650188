"""Tensors on the way between server and sites: one safetensors blob, which is also their whole form, never a pickle.

FLARE writes of each array that it is one, how it was written, and a header padded to 128 bytes, 300 bytes in all: a twentieth of an
adapter whose tensors have a few thousand bytes.
"""

import safetensors.numpy
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.datum import DatumManager

from pt_peft.tensors import Tensors, safetensors_bytes


class WireTensors(dict):
    """`Tensors` that travel so. A filter that makes a plain dict of them costs bytes and nothing else."""


class WireTensorsDecomposer(fobs.Decomposer):
    """Tells FLARE how; registered where this module is imported."""

    def supported_type(self) -> type:
        return WireTensors

    def decompose(self, target: Tensors, manager: DatumManager | None = None) -> bytes:
        return safetensors_bytes(target)

    def recompose(self, data: bytes, manager: DatumManager | None = None) -> WireTensors:
        """Raises SafetensorError for bytes that are no such blob: FLARE drops the message."""
        return WireTensors(safetensors.numpy.load(data))


fobs.register(WireTensorsDecomposer)
