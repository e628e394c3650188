"""Exchanged tensors: what is let in, digests, and the adapter file."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import (
    TensorError,
    TensorSpec,
    check_tensors,
    payload_bytes,
    payload_l2_norm,
    payload_sha256,
)
from pt_peft.model.adapter_file import load_adapter, save_adapter

GOOD = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
SPECS = {key: TensorSpec(value.shape, str(value.dtype)) for key, value in GOOD.items()}


def test_good_tensors_pass():
    assert check_tensors(GOOD, SPECS).keys() == GOOD.keys()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": GOOD["a"]}, r"1 tensor\(s\) missing: 'b'"),
        ({**GOOD, "image": GOOD["b"]}, r"1 tensor\(s\) not allowed: 'image'"),
        ({**GOOD, 3: GOOD["b"]}, r"not allowed: 3"),
        ({**GOOD, "a": np.ones((3, 2), np.float32)}, r"'a' has shape \(3, 2\), not \(2, 3\)"),
        ({**GOOD, "a": np.ones((2, 3), np.float64)}, "'a' has dtype float64, not float32"),
        ({**GOOD, "b": np.array([0, np.nan, np.inf, 0], np.float32)}, r"'b' has 2 value\(s\) that are not finite"),
        ({**GOOD, "b": [0.0] * 4}, "'b' is a list, not an array"),
        ({**GOOD, "b": np.ma.masked_invalid(np.array([0, 0, 0, np.nan], np.float32))}, "'b' is a MaskedArray"),
        ([], "payload is a list"),
        (None, "payload is a NoneType"),
    ],
)
def test_bad_tensors_do_not(bad, message):
    with pytest.raises(TensorError, match=message):
        check_tensors(bad, SPECS)


def test_sizes_and_norm():
    assert payload_bytes(GOOD) == 40 == sum(spec.nbytes for spec in SPECS.values())
    assert payload_l2_norm(GOOD) == pytest.approx(6**0.5)
    assert SPECS["a"] == TensorSpec((2, 3), "float32")


def test_sha256_tells_key_shape_dtype_and_value():
    variants = [
        GOOD,
        {"c": GOOD["a"], "b": GOOD["b"]},
        {**GOOD, "a": GOOD["a"].reshape(3, 2)},
        {**GOOD, "b": np.zeros(4, np.int32)},
        {**GOOD, "b": np.array([0, 0, 0, 1e-30], np.float32)},
    ]
    assert len({payload_sha256(variant) for variant in variants}) == len(variants)
    assert payload_sha256(dict(reversed(GOOD.items()))) == payload_sha256(GOOD)


def test_adapter_file_round_trip(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, {**GOOD, "t": np.arange(6.0).reshape(2, 3).T}, {"round": 3, "classes": ["ä"]})
    tensors, header = load_adapter(path)
    assert header == {"round": 3, "classes": ["ä"]}
    assert np.array_equal(tensors["t"], np.arange(6.0).reshape(2, 3).T)
    assert np.array_equal(tensors["a"], GOOD["a"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_adapter_files_that_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(path)
    path.write_bytes(b"\x80\x04pickle, or anything else")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_adapter(path)
    path.write_bytes(safetensors.numpy.save(GOOD, metadata={"other": json.dumps({})}))
    with pytest.raises(UserError, match="no 'pt_peft' header"):
        load_adapter(path)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, GOOD, {"round": 1})
    no_json: Any = object()
    with pytest.raises(TypeError):
        save_adapter(path, GOOD, {"round": no_json})
    assert load_adapter(path)[1] == {"round": 1}
