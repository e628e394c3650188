"""The lesion generator: pure, balanced, different between sites."""

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pt_peft.data.lesions import CLASSES, draw_lesions
from pt_peft.errors import UserError

ARGUMENTS: dict[str, Any] = {"seed": 3, "site": "site-1", "split": "train", "count": 23, "size": 32, "num_classes": 4}


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_shapes_dtypes_and_names():
    images, labels = draw_lesions(**ARGUMENTS)
    assert images.shape == (23, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (23,)
    assert labels.dtype == np.int64
    assert len(set(CLASSES)) == len(CLASSES) >= 4


def test_same_arguments_give_the_same_bytes_in_a_fresh_process():
    code = f"""
import hashlib, sys
from pt_peft.data.lesions import draw_lesions
images, labels = draw_lesions(**{ARGUMENTS})
print(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(), "torch" in sys.modules)
"""
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert fresh == [digest(*draw_lesions(**ARGUMENTS)), "False"]


def test_bytes_are_those_of_every_machine():
    assert digest(*draw_lesions(**ARGUMENTS)) == "05d7cc99ac6a7c54e7b6fafd5cd383244ab08c4a430b4237932ec4d9cdae2302"


@pytest.mark.parametrize("change", [{"seed": 4}, {"site": "site-2"}, {"split": "test"}], ids=str)
def test_seed_site_and_split_each_give_other_images(change):
    images, _ = draw_lesions(**ARGUMENTS)
    others, _ = draw_lesions(**ARGUMENTS | change)
    assert not {i.tobytes() for i in images} & {o.tobytes() for o in others}


@pytest.mark.parametrize("num_classes", range(2, len(CLASSES) + 1))
def test_classes_are_balanced_and_shuffled(num_classes):
    _, labels = draw_lesions(**ARGUMENTS | {"num_classes": num_classes})
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes
    assert counts.max() - counts.min() <= 1
    assert not np.array_equal(labels, np.arange(len(labels)) % num_classes)


def test_sites_differ_in_colour_more_than_draws_of_one_site_do():
    def colour(site: str, split: str) -> np.ndarray:
        images, _ = draw_lesions(**ARGUMENTS | {"site": site, "split": split, "count": 100})
        return images.mean((0, 1, 2))

    within = np.abs(colour("site-1", "train") - colour("site-1", "test")).max()
    assert np.abs(colour("site-1", "train") - colour("site-2", "train")).max() > 3 * within


def test_mean_colour_does_not_tell_the_classes_apart():
    images, labels = draw_lesions(**{**ARGUMENTS, "count": 400})
    means = images.mean((1, 2))
    centres = np.stack([means[:200][labels[:200] == c].mean(0) for c in range(4)])
    guesses = ((means[200:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (guesses == labels[200:]).mean() < 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_classes": 1}, "num_classes is 1; the lesion images have 2 to "),
        ({"num_classes": len(CLASSES) + 1}, f"num_classes is {len(CLASSES) + 1}; the lesion images have 2 to "),
        ({"count": 0}, "count is 0; at least 1"),
        ({"size": 8}, "size is 8; lesion images are at least 16"),
    ],
)
def test_arguments_out_of_range_are_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        draw_lesions(**ARGUMENTS | change)
