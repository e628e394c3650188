"""How tensors travel in FLARE's messages."""

import zlib

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize
from safetensors import SafetensorError

from pt_peft.exchange.tensors import payload_bytes
from pt_peft_flare.wire import WireTensors, WireTensorsDecomposer

TENSORS = WireTensors(
    {
        "blocks.0.attn.qkv.lora_A": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "scale": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float16),
        "steps": np.array([-127, 127], np.int8),
        "bits": np.array([1, 2**16 - 1], np.uint16),
        "cipher": np.frombuffer(bytes(range(256)), np.uint8),
        "counts": np.array([2**40], np.int64),
    }
)


@pytest.fixture(autouse=True)
def flare():
    nvflare_fobs_initialize()


def test_there_and_back():
    sent = fobs.dumps(DXO(DataKind.WEIGHTS, data=TENSORS).to_shareable())
    come = from_shareable(fobs.loads(sent)).data
    assert isinstance(come, dict)
    assert come.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert type(come[key]) is np.ndarray
        assert come[key].dtype == value.dtype
        assert come[key].shape == value.shape
        assert np.array_equal(come[key], value)


def test_they_cost_little_beside_their_bytes():
    """A tenth of what FLARE's own way does."""
    tensors = {f"blocks.{index}.attn.qkv.lora_A": np.ones((4, 192), np.float32) for index in range(38)}
    own = len(fobs.dumps(WireTensors(tensors))) - payload_bytes(tensors)
    flare = len(fobs.dumps(tensors)) - payload_bytes(tensors)
    assert own < 38 * 30
    assert own < 0.1 * flare


WHOLE = WireTensorsDecomposer().decompose(TENSORS)
BOMB = zlib.compress(bytes(200_000_000))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x04.", b"\xff" * 64, fobs.dumps({"a": 1}), WHOLE[:20], WHOLE[:-1], WHOLE + b"x",
        len(BOMB).to_bytes(8, "little") + BOMB,
    ],
)  # fmt: skip
def test_other_bytes_are_refused(content):
    with pytest.raises(SafetensorError):
        WireTensorsDecomposer().recompose(content)
