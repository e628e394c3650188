"""How tensors are written for the way: bounds, bytes, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter, ValidationError

from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.exchange.codecs import Payload
from pt_peft.exchange.tensors import TensorError, TensorSpec, payload_bytes

LARGEST = float(np.finfo(np.float32).max)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
NAMES = ["float32", "float16", "bfloat16", "int8", "top_k"]
every_codec = pytest.mark.parametrize("name", NAMES)


def codec(name, **fields):
    return TypeAdapter(Payload).validate_python({"up": {"name": name, **fields}}).up


def arrays(largest):
    """Draws a tensor of any shape: with zeros, denormal and huge values, or all values alike."""
    values = st.floats(-largest, largest, width=32, allow_subnormal=True)
    return hnp.arrays(
        np.float32, SHAPES, elements=values | st.sampled_from([0.0, -0.0, 1e-45, -3e-42, largest, -largest])
    )


def specs_of(tensors):
    return {key: TensorSpec(value.shape, str(value.dtype)) for key, value in tensors.items()}


def draw(seed=0):
    return lambda key: np.random.default_rng(seed)


def there_and_back(codec, value, random=None):
    tensors = {"w": value}
    encoded = codec.encode(tensors, random)
    assert specs_of(encoded) == codec.specs(specs_of(tensors)), "both ends know what travels"
    decoded = codec.decode(encoded, specs_of(tensors))["w"]
    assert decoded.shape == value.shape
    assert decoded.dtype == np.float32
    return decoded.astype(np.float64)


@given(arrays(LARGEST))
def test_float32_is_exact(value):
    encoded = codec("float32").encode({"w": value})
    assert encoded["w"] is value
    assert codec("float32").decode(encoded, specs_of(encoded))["w"] is value


@given(arrays(65519.0))
def test_float16(value):
    error = np.abs(there_and_back(codec("float16"), value) - value)
    assert (error <= np.maximum(2**-11 * np.abs(value.astype(float)), 2**-25)).all()


def test_float16_has_an_absolute_bound_below_its_smallest_normal_number():
    """As numpy rounds: 2^-25 at most, which a relative bound would not allow."""
    random = np.random.default_rng(0)
    small = (2.0 ** random.uniform(-28, -14, 20_000)).astype(np.float32)
    small = np.append(small, np.float32(2**-25))
    read = there_and_back(codec("float16"), small)
    np.testing.assert_array_equal(read, small.astype(np.float16).astype(np.float64))
    error = np.abs(read - small)
    assert error.max() == 2**-25
    assert (error > 2**-11 * small).mean() > 0.5
    large = (2.0 ** random.uniform(-14, 15, 20_000)).astype(np.float32)
    relative = np.abs(there_and_back(codec("float16"), large) - large) / large
    assert 0.9 * 2**-11 < relative.max() <= 2**-11


@given(arrays(float(np.float32(3.389e38))))
def test_bfloat16(value):
    error = np.abs(there_and_back(codec("bfloat16"), value) - value)
    assert (error <= np.maximum(2**-8 * np.abs(value.astype(float)), 2.0**-134)).all()


def test_bfloat16_rounds_to_nearest_even():
    import torch

    value = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    value = np.concatenate([value, value & 0xFFFF8000 | 0x8000]).view(np.float32)  # and ones that lie in the middle
    value = value[np.isfinite(value) & (np.abs(value) < 3.38e38)]
    wanted = torch.from_numpy(value).to(torch.bfloat16).float().numpy()
    assert np.array_equal(there_and_back(codec("bfloat16"), value), wanted)


@settings(deadline=None)
@given(arrays(LARGEST), st.integers(0, 2**32 - 1))
def test_int8(value, seed):
    """Half a step to nearest, a step at random; a step is the largest magnitude of a channel through 127."""
    for random, steps in ((None, 0.5), (draw(seed), 1.0)):
        encoded = codec("int8").encode({"w": value}, random)
        scale = encoded["w/scale"].astype(float)
        axis = value.shape.index(min(value.shape)) if value.ndim > 1 else None
        channels = (
            np.moveaxis(value, axis, 0).reshape(len(scale), -1)
            if axis is not None and value.size
            else value.reshape(1, -1)
        )
        peak = np.abs(channels).max(axis=1, initial=0) if value.size else np.zeros(len(scale))
        np.testing.assert_allclose(scale, np.where(peak > 0, np.maximum(peak / 127, 2.0**-126), 0), rtol=1e-6)
        bound = (
            scale.reshape([-1 if other == axis else 1 for other in range(value.ndim)])
            if axis is not None
            else scale.sum()
        )
        error = np.abs(there_and_back(codec("int8"), value, random) - value)
        assert (error <= steps * bound * (1 + 2e-5)).all()


def test_int8_rounds_without_bias():
    value = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)  # channels of 40
    repeats = 4000
    total = sum(there_and_back(codec("int8"), value, draw(seed)) for seed in range(repeats))
    step = np.abs(value).max(axis=1, keepdims=True) / 127
    assert (np.abs(total / repeats - value) < 5 * 0.5 * step / repeats**0.5).all()
    nearest = there_and_back(codec("int8"), value)
    assert (np.abs(nearest - value) > 5 * 0.5 * step / repeats**0.5).any(), "else the test says little"


@given(arrays(LARGEST), st.floats(0.001, 1.0))
def test_top_k(value, fraction):
    """The largest entries, exact, and no other."""
    decoded = there_and_back(codec("top_k", fraction=fraction), value).reshape(-1)
    flat = value.reshape(-1)
    kept = int(np.ceil(round(fraction * flat.size, 9)))
    assert np.array_equal(np.sort(np.abs(decoded))[::-1][:kept], np.sort(np.abs(flat.astype(float)))[::-1][:kept])
    assert (decoded != 0).sum() <= kept
    assert (flat[decoded != 0] == decoded[decoded != 0]).all()


@every_codec
@settings(deadline=None, max_examples=50)
@given(value=arrays(1e4))
def test_zero_stays_zero(name, value):
    decoded = there_and_back(codec(name), value, draw())
    assert not decoded[value == 0].any()
    assert not there_and_back(codec(name), np.zeros_like(value), draw()).any()


BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@every_codec
def test_bytes(name):
    tensors = {str(shape): np.ones(shape, np.float32) for shape in ((20, 50), (7,), (), (0, 3))}
    encoded = codec(name).encode(tensors, draw())
    wanted = {
        "int8": (1000 + 4 * 20) + (7 + 4) + (1 + 4) + 0,
        "top_k": 100 * (2 + 4) + 1 * (1 + 4) + 1 * (1 + 4) + 0,  # uint16 for 1000 places, uint8 for 7 and 1
    }
    assert payload_bytes(encoded) == wanted.get(name, 1008 * BYTES.get(name, 0))
    assert payload_bytes(encoded) == sum(spec.nbytes for spec in codec(name).specs(specs_of(tensors)).values())


def test_indices_are_as_small_as_can_be():
    for size, dtype in ((256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")):
        value = np.arange(size, dtype=np.float32)
        assert codec("top_k", fraction=1e-5).encode({"w": value})["w/indices"].dtype == dtype
        assert there_and_back(codec("top_k", fraction=1e-5), value)[-1] == size - 1
    assert codec("top_k", fraction=0.07).specs({"w": TensorSpec((100,), "float32")})["w/values"].shape == (7,)


@pytest.mark.parametrize(("name", "value"), [("float16", 65520.0), ("float16", -1e5), ("bfloat16", LARGEST)])
def test_what_would_be_infinite_is_an_error(name, value):
    with pytest.raises(
        UserError, match=f"tensor 'w' has 1 value.s. beyond .*, the largest of payload '{name}'; 'float32'"
    ):
        codec(name).encode({"w": np.array([0, value], np.float32)})


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(name, bad):
    with pytest.raises(TensorError, match=r"tensor 'w' has 1 value.s. that are not finite"):
        codec(name).encode({"w": np.array([0, bad], np.float32)}, draw())


def malformed(name, value, **changes):
    codec_ = codec(name)
    encoded = codec_.encode({"w": value})
    for part, change in changes.items():
        change({"whole": encoded.get("w"), **{key.partition("/")[2]: array for key, array in encoded.items()}}[part])
    return codec_, encoded, specs_of({"w": value})


def put(index, value):
    return lambda array: array.__setitem__(index, value)


VALUE = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("float16", {"whole": put((0, 0), np.inf)}, "'w' has 1 value.s. that are not finite"),
        ("bfloat16", {"whole": put((0, 0), 0x7F80)}, "'w' has 1 value.s. that are not finite"),
        ("bfloat16", {"whole": put((0, 0), 0xFFC1)}, "'w' has 1 value.s. that are not finite"),
        ("int8", {"whole": put((1, 1), -128)}, "'w' has 1 value.s. of -128, which is not used"),
        ("int8", {"scale": put(0, -1)}, "'w/scale' has 1 negative value"),
        ("int8", {"scale": put(0, np.nan)}, "'w/scale' has 1 value.s. that are not finite"),
        ("int8", {"scale": put(0, np.inf)}, "'w/scale' has 1 value.s. that are not finite"),
        ("int8", {"scale": put(0, 3e38)}, "'w' has 4 value.s. that are not finite"),
        ("top_k", {"indices": put(1, 12)}, "'w/indices' has 12, but 'w' has 12 value"),
        ("top_k", {"indices": put(1, 0)}, "'w/indices' is not in rising order, each once"),
        ("top_k", {"indices": put(slice(None), [5, 1])}, "'w/indices' is not in rising order, each once"),
        ("top_k", {"values": put(0, np.nan)}, "'w/values' has 1 value.s. that are not finite"),
    ],
)
def test_malformed_payloads_are_refused(name, changes, message):
    codec_, encoded, specs = malformed(name, VALUE, **changes)
    with pytest.raises(TensorError, match=f"^tensor {message}"):
        codec_.decode(encoded, specs)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_or_too_much_is_refused(name):
    codec_, encoded, specs = malformed(name, VALUE)
    first = next(iter(encoded))
    for bad, message in (
        ({}, "missing"),
        ({**encoded, "image": VALUE}, "not allowed: 'image'"),
        ({**encoded, first: encoded[first].astype(np.float64)}, "has dtype float64"),
        ({**encoded, first: encoded[first][:1]}, "has shape"),
        (None, "payload is a NoneType"),
    ):
        with pytest.raises(TensorError, match=message):
            codec_.decode(bad, specs)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"down": {"name": "top_k"}}, "'down' is {\"name\": \"top_k\"}: input tag 'top_k'"),
        ({"up": {"name": "top_k", "fraction": 0}}, "'up.fraction' is 0: input should be greater than 0"),
        ({"up": {"name": "int4"}}, "any of the expected tags: 'float32', 'float16', 'bfloat16', 'int8', 'top_k'"),
        ({"up": {"name": "float16", "error_feedback": True}}, "'up.error_feedback' is unknown"),
    ],
)
def test_settings_that_cannot_be(payload, words):
    with pytest.raises(UserError) as error:
        schema.parse(Payload, payload, "payload")
    assert words in str(error.value)


def test_changes_travel_unless_nothing_is_rounded():
    assert not Payload().changes
    for section in ({"up": {"name": "int8"}}, {"down": {"name": "float16"}}):
        assert TypeAdapter(Payload).validate_python(section).changes
    with pytest.raises(ValidationError):
        TypeAdapter(Payload).validate_python({"up": {"name": "int8", "scale": 1}})
