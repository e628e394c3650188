"""The MONAI bundle: run by MONAI alone, in a process without this project, it gives our probabilities."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers import changed
from pt_peft.__main__ import main
from pt_peft.data.archive import open_archive
from pt_peft.data.lesions import draw_lesions
from pt_peft.data.transforms import decode_files
from pt_peft.experiment.experiment import Experiment
from pt_peft.export.formats import export, load
from pt_peft.files import sha256_of
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, save_adapter
from pt_peft.model.backbone import create_backbone
from pt_peft.prediction import logits, predictions

COLOURS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
CASES: dict[str, dict[str, Any]] = {
    "pad": {"backbone": COLOURS},
    "crop": {"fit": "crop", "intensity": "image", "test_time_flips": "all"},
    "squash": {"fit": "squash", "task": "multilabel", "test_time_flips": "horizontal", "kwargs": SWIGLU},
}
NEEDED = {
    "schema": "string",
    "version": "string",
    "monai_version": "string",
    "pytorch_version": "string",
    "numpy_version": "string",
    "required_packages_version": "object",
    "task": "string",
    "description": "string",
    "authors": "string",
    "copyright": "string",
    "network_data_format": "object",
}
"""What MONAI's meta_schema_20240725.json, which ``verify_metadata`` would fetch, requires at its top level."""
OF_TENSORS = {
    "type": "string",
    "format": "string",
    "num_channels": "integer",
    "spatial_shape": "array",
    "dtype": "string",
    "value_range": "array",
}
"""The same of each input and output."""
PROGRAM = """
import sys
sys.modules["pt_peft"] = sys.modules["pt_peft_flare"] = None  # whoever imports them fails
from monai.bundle import run, verify_metadata, verify_net_in_out

schema, images, *bundles = sys.argv[1:]
for bundle in bundles:
    configs = {"meta_file": f"{bundle}/configs/metadata.json", "config_file": f"{bundle}/configs/inference.json"}
    verify_metadata(meta_file=configs["meta_file"], filepath=schema)
    verify_net_in_out(net_id="network_def", device="cpu", **configs)
    run(bundle_root=bundle, dataset_dir=images, output_dir=f"{bundle}/eval", device="cpu", **configs)
"""


def schema() -> dict[str, Any]:
    def needs(types: dict[str, str]) -> dict[str, Any]:
        return {"type": "object", "required": list(types), "properties": {key: {"type": types[key]} for key in types}}

    tensors = {"type": "object", "minProperties": 1, "additionalProperties": needs(OF_TENSORS)}
    found = needs(NEEDED)
    found["properties"]["network_data_format"] = {
        "type": "object",
        "required": ["inputs", "outputs"],
        "properties": {"inputs": tensors, "outputs": tensors},
    }
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Of the embedded generator; wide, tall, thin, grey, of 12 and 16 bits, turned by EXIF, indexed, transparent."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    made = {
        "wide.png": draw.integers(0, 256, (30, 45, 3), np.uint8),
        "tall.jpg": draw.integers(0, 256, (70, 41), np.uint8),
        "square.bmp": draw.integers(0, 256, (32, 32, 3), np.uint8),
        "thin.png": draw.integers(0, 256, (11, 205, 3), np.uint8),
        "twelve.png": draw.integers(100, 4000, (40, 60), np.uint16),
        "sixteen.tif": draw.integers(0, 65536, (48, 32), np.uint16),
        "clear.png": draw.integers(0, 256, (37, 50, 4), np.uint8),
    }
    for name, array in made.items():
        Image.fromarray(array).save(folder / name)
    lesions = draw_lesions(seed=0, site="site-1", split="test", count=3, num_classes=4, size=64)[0]
    for number, array in enumerate(lesions):
        Image.fromarray(array).save(folder / f"lesion{number}.png")
    turned = Image.fromarray(draw.integers(0, 256, (24, 50, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    palette = Image.fromarray(draw.integers(0, 256, (33, 44, 3), np.uint8)).quantize(16)
    palette.save(folder / "palette.png", transparency=3)
    return folder


def bundle_of(tiny: Experiment, weights: Path, out: Path, **changes: Any) -> Path:
    """A bundle of a LoRA with random tensors."""
    kwargs = {**tiny.backbone.kwargs, **changes.pop("kwargs", {})}
    backbone = {**changes.pop("backbone", {}), "kwargs": kwargs}
    data = {"source": "site", "augment": [], **changes}
    experiment = changed(tiny, method={"name": "lora", "options": {}}, backbone=backbone, data=data)
    if kwargs != tiny.backbone.kwargs:
        weights = out.with_suffix(".weights.safetensors")
        save_file(create_backbone(experiment.backbone, 4, None).state_dict(), weights)
        experiment = changed(experiment, backbone={"sha256": sha256_of(weights)})
    model = build_model(experiment.model, weights)
    draw = np.random.default_rng(0)
    tensors = {
        key: (value + draw.normal(size=value.shape, scale=0.3)).astype(np.float32)
        for key, value in model.state().items()
    }
    adapter = out.with_suffix(".safetensors")
    save_adapter(adapter, tensors, adapter_header(experiment) | {"round": 2})
    export(adapter, "monai_bundle", out, weights)
    return out


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("ignite", "jsonschema")),
    reason="what MONAI runs bundles with, PyTorch-Ignite and jsonschema, is not installed",
)
def test_monai_alone_gives_our_probabilities(tiny, tiny_weights, images, tmp_path):
    bundles = {name: bundle_of(tiny, tiny_weights, tmp_path / name, **case) for name, case in CASES.items()}
    (tmp_path / "schema.json").write_text(json.dumps(schema()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [tmp_path / "schema.json", images, *bundles.values()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(file.name for file in images.iterdir())
    for name, bundle in bundles.items():
        classifier = load(bundle, None)
        with open_archive(images) as open_image:
            found = np.array(list(decode_files(names, open_image, classifier.decoding, where="images")))
        expected = predictions(classifier.spec, logits(classifier, found), None).probabilities
        with (bundle / "eval" / "predictions.csv").open() as file:
            rows = {Path(row[0]).name: [float(value) for value in row[1:]] for row in csv.reader(file)}
        assert list(rows) == names, name
        np.testing.assert_allclose(list(rows.values()), expected, rtol=0, atol=1e-5, err_msg=name)
        assert expected.std(axis=0).max() > 1e-3, "the images tell nothing"


def test_the_folder(tiny, tiny_weights, tmp_path):
    bundle = bundle_of(tiny, tiny_weights, tmp_path / "bundle")
    files = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
    assert files == {
        "LICENSE", "README.md", "pt_peft.json", "configs/inference.json", "configs/metadata.json", "docs/README.md",
        "models/model.pt",
    }  # fmt: skip
    tensors = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain = create_backbone(tiny.backbone, 4, None).state_dict()
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in plain.items()}
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == dict(zip("0123", "abcd", strict=True))
    assert "| 3 | d |" in (bundle / "docs" / "README.md").read_text()


def test_what_a_bundle_cannot_hold(tiny, tiny_weights, tmp_path, capsys):
    experiment = changed(tiny, method={"name": "vpt_deep", "options": {}})
    model = build_model(experiment.model, tiny_weights)
    adapter = tmp_path / "a.safetensors"
    arguments = ["export", str(adapter), "--format", "monai_bundle", "--out", str(tmp_path / "b")]
    arguments += ["--backbone", str(tiny_weights)]
    save_adapter(adapter, model.state(), adapter_header(experiment) | {"round": 2})
    assert main(arguments) == 1
    assert "cannot be merged" in capsys.readouterr().err
    experiment = changed(tiny, method={"name": "lora", "options": {}}, data={"classes": ["a", "b", "$exit(1)", "d"]})
    model = build_model(experiment.model, tiny_weights)
    save_adapter(adapter, model.state(), adapter_header(experiment) | {"round": 2})
    assert main(arguments) == 1
    assert "is '$exit(1)', which MONAI's configs do not take as text" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
