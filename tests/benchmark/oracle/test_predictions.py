"""Predictions as a result keeps them: whole, or refused."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.oracle.predictions import Predictions

WHOLE = Predictions(
    ["east", "west"],
    np.array([[0.5, -1.0], [2.0, 0.25], [0.0, 3.0]], np.float16),
    np.array([0, 1, 1], np.int64),
    np.array([0, 0, 1], np.uint16),
)
PACKED = base64.b64decode(WHOLE.pack())


def test_round_trip():
    read = Predictions.unpack(WHOLE.pack())
    assert read.sites == WHOLE.sites
    for name in ("logits", "labels", "site"):
        np.testing.assert_array_equal(getattr(read, name), getattr(WHOLE, name))


@given(
    st.dictionaries(st.integers(0, len(PACKED) - 1), st.integers(0, 255), min_size=1, max_size=6), st.integers(0, 40)
)
def test_damage_is_a_value_error_or_harmless(changes, cut):
    damaged = bytearray(PACKED)
    for place, value in changes.items():
        damaged[place] = value
    text = base64.b64encode(bytes(damaged[: len(damaged) - cut])).decode()
    try:
        read = Predictions.unpack(text)
    except ValueError:
        return
    assert read.logits.shape[:1] == read.labels.shape[:1] == read.site.shape


@pytest.mark.parametrize("text", ["", "no base64", base64.b64encode(b"PK\x03\x04 no archive").decode()])
def test_what_is_no_archive(text):
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz"):
        Predictions.unpack(text)
