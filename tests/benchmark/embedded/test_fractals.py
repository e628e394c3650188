"""Formula-driven pre-training: deterministic images, a file that loads, and the committed backbone."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from benchmark.embedded import fractals
from benchmark.embedded.backbone import Budget, main, pretrain
from benchmark.embedded.cosine_stem import start_with_cosines
from helpers import ROOT
from pt_peft.errors import UserError

COMMITTED = ROOT / "pt_peft" / "embedded" / "backbone.safetensors"


def load(weights: Path) -> dict:
    """Loads the file as its JSON file says, with every key there and no other; returns what the JSON file says."""
    record = json.loads(weights.with_suffix(".json").read_text())
    model = timm.create_model(
        record["name"], pretrained=False, img_size=record["image_size"], num_classes=0, **record["kwargs"]
    )
    model.load_state_dict({key: tensor.float() for key, tensor in load_file(weights).items()}, strict=True)
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    return record


def draw(**change) -> tuple[np.ndarray, ...]:
    tables = fractals.make_tables(seed=1)
    return fractals.draw(tables, **{"seed": 1, "part": "train", "index": 0, "count": 40, "size": 32} | change)


def test_images_are_a_pure_function_of_the_arguments():
    for first, second in zip(draw(), draw(), strict=True):
        np.testing.assert_array_equal(first, second)
    images, _, _ = draw()
    for change in ({"seed": 2}, {"part": "val"}, {"index": 1}):
        others, _, _ = draw(**change)
        assert not {i.tobytes() for i in images} & {o.tobytes() for o in others}


def test_images_labels_and_maps_have_the_promised_form():
    images, labels, maps = draw()
    assert images.shape == (40, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (40, len(fractals.HEADS))
    assert labels.dtype == np.int64
    assert maps.shape == (40, 4, 4)
    assert maps.dtype == bool
    assert (labels.max(0) < fractals.make_tables(seed=1).sizes).all()
    assert labels.min() >= 0


def test_cosine_stem_keeps_colours_and_frequencies_apart():
    torch.manual_seed(0)
    projection, images = torch.nn.Conv2d(3, 96, 8, 8), torch.rand(200, 3, 32, 32)
    start_with_cosines(projection, images)
    outputs = projection(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs.mean(1), torch.zeros(96), atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.std(1), torch.ones(96), atol=1e-3, rtol=0)
    directions = torch.nn.functional.normalize(projection.weight.flatten(1))
    torch.testing.assert_close(directions @ directions.T, torch.eye(96), atol=1e-5, rtol=0)


def test_a_few_steps_write_the_same_loadable_file_twice(tmp_path):
    budget = Budget(seed=5, steps=2, images=64, validation=1, threads=1)
    records = [pretrain(tmp_path / name / "backbone.safetensors", budget) for name in "ab"]
    assert records[0]["sha256"] == records[1]["sha256"]
    record = load(tmp_path / "a" / "backbone.safetensors")
    assert record["provenance"]["steps"] == 2
    assert record["provenance"]["seed"] == 5
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_the_ceiling_of_minutes_ends_a_run_early(tmp_path):
    budget = Budget(steps=100_000, images=64, validation=1, minutes=1e-3, threads=1)
    assert pretrain(tmp_path / "backbone.safetensors", budget)["provenance"]["steps"] < 100


def test_the_committed_backbone_is_small_and_is_what_its_record_says():
    assert COMMITTED.stat().st_size <= 4_000_000
    load(COMMITTED)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"steps": 0}, "--steps is 0"), ({"images": 63}, "--images is 63"), ({"minutes": 0.0}, "--minutes is 0.0")],
)
def test_budgets_out_of_range_are_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        Budget(**change)


def test_the_command_prints_a_mistake_without_a_traceback(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "weights.pt")]) == 1
    assert capsys.readouterr().err == "error: --out is weights.pt; it must end in .safetensors.\n"
