"""How tensors travel in FLARE's messages."""

import json
import tracemalloc
import zlib

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

from pt_peft.exchange.tensors import TensorError, TensorSpec, payload_bytes
from pt_peft_flare.wire import (
    BEFORE,
    Bounds,
    Unreadable,
    WireTensors,
    WireTensorsDecomposer,
    come,
    expect,
    packed,
    unpacked,
)

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


WHOLE = packed(TENSORS)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04.", b"\xff" * 64, fobs.dumps({"a": 1}), WHOLE[:20], WHOLE[:-1], WHOLE + b"x"],
)  # fmt: skip
def test_other_bytes_are_refused(content):
    with pytest.raises(TensorError, match="no deflated header and tensors"):
        unpacked(content, BEFORE)


def with_header(header: bytes) -> bytes:
    deflated = zlib.compress(header)
    return len(deflated).to_bytes(8, "little") + deflated


def test_a_long_header_is_not_inflated():
    content = with_header(bytes(400_000_000))
    tracemalloc.start()
    with pytest.raises(TensorError, match="header of the payload has more than 1048576 bytes"):
        unpacked(content, BEFORE)
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()


def test_before_anything_is_known_empty_tensors_fill_no_memory():
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    tracemalloc.start()
    with pytest.raises(TensorError, match="more than 1048576 bytes"):
        unpacked(with_header(json.dumps({f"{n:x}": entry for n in range(20_000)}).encode()), BEFORE)
    few = unpacked(with_header(json.dumps({f"{n:x}": entry for n in range(15_000)}).encode()), BEFORE)
    assert len(few) == 15_000
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


def test_what_is_expected_passes_and_more_does_not():
    bounds = Bounds.of({key: TensorSpec(value.shape, str(value.dtype)) for key, value in TENSORS.items()})
    assert unpacked(WHOLE, bounds).keys() == TENSORS.keys()
    with pytest.raises(TensorError, match=f"at most {payload_bytes(TENSORS)} would be right"):
        unpacked(packed({**TENSORS, "scale": np.zeros(2, np.float32)}), bounds)
    with pytest.raises(TensorError, match="header of the payload has more than"):
        unpacked(packed({**TENSORS, **{f"extra.{n}": np.zeros(0, np.float32) for n in range(40)}}), bounds)


@pytest.mark.parametrize("name", ["é" * 50, '"' * 50, "a" * 50])
def test_names_of_any_kind_are_expected(name):
    spec = TensorSpec((2**30, 0, 2**30, 1), "float32")
    assert unpacked(packed({name: np.zeros(spec.shape, np.float32)}), Bounds.of({name: spec})).keys() == {name}


def test_what_cannot_be_read_does_not_end_the_process():
    """FLARE ends the server's process of a job at an error."""
    try:
        expect(Bounds(header=100))
        come_ = from_shareable(fobs.loads(fobs.dumps(DXO(DataKind.WEIGHTS, data=TENSORS).to_shareable()))).data
    finally:
        expect(BEFORE)
    assert come_ == {}
    with pytest.raises(TensorError, match="more than 100 bytes"):
        come(come_)
    assert isinstance(WireTensorsDecomposer().recompose(5), Unreadable)
    assert come(TENSORS) is TENSORS
