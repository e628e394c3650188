"""Predictions as a result keeps them: whole, or refused."""

import base64
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.oracle.evaluation import predict
from benchmark.oracle.predictions import Predictions, group_numbers
from benchmark.oracle.reference import load_sites, make_trainer
from helpers import changed
from pt_peft.experiment.own_images import SiteData

WHOLE = Predictions(
    ["east", "west"],
    np.array([[0.5, -1.0], [2.0, 0.25], [0.0, 3.0]], np.float16),
    np.array([0, 1, 1], np.int64),
    np.array([0, 0, 1], np.uint16),
    group_numbers(["patient 1", "patient 1", "patient 2"]),
)
PACKED = base64.b64decode(WHOLE.pack())


def test_round_trip():
    read = Predictions.unpack(WHOLE.pack())
    assert read.sites == WHOLE.sites
    for name in ("logits", "labels", "site", "group"):
        np.testing.assert_array_equal(getattr(read, name), getattr(WHOLE, name))
    assert len(set(known_groups(read).tolist())) == 2


def known_groups(predictions: Predictions) -> np.ndarray:
    assert predictions.group is not None
    return predictions.group


def test_files_of_earlier_versions_know_no_groups():
    assert Predictions.unpack(replace(WHOLE, group=None).pack()).group is None
    with pytest.raises(ValueError, match=r"group \(2,\) do not fit together"):
        Predictions.unpack(replace(WHOLE, group=known_groups(WHOLE)[:2]).pack())


def test_images_are_the_same_in_another_run_if_they_are_from_one_source(tiny, site, tmp_path):
    """Of a table, a lesion has one number at any site and seed; sites that draw their own images have other ones."""

    def groups(experiment, site):
        names = ["site-1", "site-2"]
        trainer, data = make_trainer(experiment, site), load_sites(experiment, site, names)
        return set(known_groups(predict(trainer, trainer.initial, {}, data, "test")).tolist())

    drawn = groups(tiny, site)
    assert len(drawn) == 2 * 16
    assert drawn == groups(tiny, site)
    assert not drawn & groups(changed(tiny, seed=tiny.seed + 1), site)
    archive, random = tmp_path / "data.npz", np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("val", 8), ("test", 12)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 4, (count, 1))
    np.savez(archive, allow_pickle=False, **arrays)
    pooled = site.model_copy(update={"data": SiteData(source="npz", npz=str(archive), pooled=True)})
    dealt = changed(tiny, data={"source": "site", "classes": list("abcd")}, partition={"kind": "iid"})
    assert len(found := groups(dealt, pooled)) == 12
    assert found == groups(changed(dealt, seed=dealt.seed + 1), pooled)


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
