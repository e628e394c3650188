"""Batches on a GPU are those of the CPU, wherever their split lies; without a GPU the CPU stands for one."""

import gc
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from pt_peft.data import device_batches
from pt_peft.data.device_batches import DeviceSplits
from pt_peft.data.site_data import CachedAs, FeatureSplit, ImageSplit, batches, drawn_batches

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
AUGMENT = ("rotate90", "intensity", "flip")


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=NO_GPU)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["fits", "does not fit"])
def on(request, device) -> DeviceSplits:
    return DeviceSplits(device, lambda _: 2**30 if request.param == "fits" else 1000)


@pytest.fixture
def split() -> ImageSplit:
    images = np.random.default_rng(0).integers(0, 256, (37, 3, 16, 16), dtype=np.uint8)
    images.setflags(write=False)
    return ImageSplit(images, np.arange(37))


def cached(split: ImageSplit, name: str) -> ImageSplit:
    return ImageSplit(split.images.copy(), split.labels, CachedAs(Path(name), "train", 1.0))


def assert_same(found, expected, tolerance: float = 0.0) -> None:
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[0].dtype == torch.float32
        assert torch.equal(one[1].cpu(), other[1])
        torch.testing.assert_close(one[0].cpu(), other[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("augment", [(), ("flip",), ("rotate90", "flip"), ("intensity",), AUGMENT])
def test_images(split, on, augment):
    for seed in (None, 3, 2**40):
        options = {"seed": seed, "augment": augment}
        tolerance = 1e-6 if "intensity" in augment else 0.0
        assert_same(batches(split, 8, **options, on=on), batches(split, 8, **options), tolerance)


def test_all_images_are_converted_as_on_the_cpu(on):
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    split = ImageSplit(images, np.zeros(1, np.int64))
    assert_same(batches(split, 1, seed=None, on=on), batches(split, 1, seed=None))


def test_weights_and_labels_of_several_classes(split, on):
    split = ImageSplit(split.images, np.random.default_rng(0).integers(0, 2, (37, 5), dtype=np.uint8))
    options = {"seed": 1, "weights": np.linspace(1, 3, 37)}
    assert_same(batches(split, 8, **options, on=on), batches(split, 8, **options))


@pytest.mark.parametrize(("views", "augment", "dtype"), [((0,), (), "float32"), ((0, 2, 4, 6), ("flip",), "float16")])
def test_features(split, on, views, augment, dtype):
    values = np.random.default_rng(1).standard_normal((37, len(views), 5, 4)).astype(dtype)
    features = FeatureSplit(values, views, split.labels)
    for seed in (None, 3):
        options = {"seed": seed, "augment": augment if seed else ()}
        assert_same(batches(features, 8, **options, on=on), batches(features, 8, **options))


def test_given_images_are_asked_for_in_their_turn(split, on):
    """Differential privacy draws its noise between them."""
    asked = []

    def places():
        for chosen in ([4, 4, 1], [], [36]):
            asked.append(chosen)
            yield np.array(chosen, np.int64)

    expected = drawn_batches(split, places(), seed=5, augment=AUGMENT)
    assert_same(drawn_batches(split, places(), seed=5, augment=AUGMENT, on=on), expected, 1e-6)
    asked.clear()
    next(drawn_batches(split, places(), seed=5, augment=AUGMENT, on=on))
    assert len(asked) == 1


def test_a_pass_that_ends_early_leaves_no_thread(split, device):
    passed = batches(split, 4, seed=1, on=DeviceSplits(device, lambda _: 0))
    assert isinstance(passed, Generator)
    next(passed)
    passed.close()  # would wait for ever for a thread that waits for it


def test_an_error_while_batches_are_gathered_is_raised(split, device):
    wrong = ImageSplit(split.images, split.labels[:5])
    with pytest.raises(IndexError):
        list(drawn_batches(wrong, [np.array([7])], seed=1, on=DeviceSplits(device, lambda _: 0)))


@pytest.fixture
def copies(monkeypatch) -> list[int]:
    """Bytes of each split that is copied to the device."""
    copied = []

    def empty(shape, dtype, device):
        copied.append(int(np.prod(shape)))
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr(device_batches.torch, "empty", empty)
    return copied


def test_a_split_stays_until_others_need_its_place(split, copies):
    splits = DeviceSplits(torch.device("cpu"))
    size = split.images.nbytes
    splits._room = lambda _: 5 * size - sum(one.nbytes for one in splits._held.values())
    first, second, third = (cached(split, name) for name in "abc")
    for one in (first, second, cached(split, "a"), first):  # as another site or a later round opens it
        list(batches(one, 8, seed=None, on=splits))
    assert copies == [size, size]
    for one in (third, first):  # not the second, which was used before the first
        list(batches(one, 8, seed=None, on=splits))
    assert copies == [size, size, size]
    list(batches(second, 8, seed=None, on=splits))
    assert len(copies) == 4


def test_a_split_that_does_not_fit_leaves_others_where_they_are(split, copies):
    splits = DeviceSplits(torch.device("cpu"))
    splits._room = lambda _: 3 * split.images.nbytes - sum(one.nbytes for one in splits._held.values())
    large = ImageSplit(np.concatenate([split.images] * 2), np.arange(74))
    for one in (split, large, split):
        list(batches(one, 8, seed=None, on=splits))
    assert copies == [split.images.nbytes]


def test_a_split_that_is_not_cached_goes_with_its_images(split):
    splits = DeviceSplits(torch.device("cpu"), lambda _: 2**30)
    images = split.images.copy()
    list(batches(ImageSplit(images, split.labels), 8, seed=None, on=splits))
    assert len(splits._held) == 1
    del images
    gc.collect()
    assert not splits._held
