"""Published backbones, with one block each: they load from files as published, and take a step."""

import json

import pytest

from benchmark.measurements.backbones import BACKBONES, main

EXPECTED = {
    "ViT (AugReg)": (1, "fused", "learned", False),
    "MAE": (1, "fused", "learned", False),
    "DINOv2": (1, "fused", "learned", True),
    "DINOv2 with registers": (5, "fused", "learned", True),
    "DINOv3": (5, "fused, no bias", "rotary", True),
    "CLIP": (1, "fused", "learned", False),
    "BiomedCLIP": (1, "fused", "learned", False),
    "RETFound": (1, "fused", "learned", False),
    "UNI2-h": (9, "fused", "learned", True),
    "Virchow2": (5, "fused", "learned", True),
    "Phikon": (1, "fused", "learned", False),
    "RAD-DINO": (1, "fused", "learned", True),
}
"""Prefix tokens, qkv, positions, and whether there is a layer scale."""


def test_all_that_the_table_names():
    assert [one.name for one in BACKBONES] == [*EXPECTED]


@pytest.mark.parametrize("name", EXPECTED)
def test_it_loads_and_takes_a_step(name, tmp_path):
    out = tmp_path / "b.json"
    assert main(["--only", name, "--blocks", "1", "--image-size", "112", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["weights"] == "random"
    (row,) = found["rows"]
    assert (row["prefix_tokens"], row["qkv"], row["positions"], row["layer_scale"]) == EXPECTED[name]
    assert (row["blocks"], row["head"], row["sha256"]) == (1, "head", None)
    assert row["limits"] == "taken", "no word of the site is needed"
    assert row["loss"][1] < row["loss"][0]
    assert row["site"].startswith("hf-hub:")
    assert row["exchanged"] > 0


def test_what_does_not_go_together(capsys):
    assert main(["--published", "--blocks", "1"]) == 1
    assert "--blocks: published weights have all of their blocks" in capsys.readouterr().err
