"""What makes a file the model's input goes home with the model: `predict` sees what evaluation saw, bit for bit."""

import csv
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from helpers import changed
from pt_peft.__main__ import main
from pt_peft.commands import predict
from pt_peft.data.site_data import load_site_data
from pt_peft.data.transforms import transform_arrays
from pt_peft.experiment.own_images import Columns, SiteData
from pt_peft.experiment.sections import Fit, Intensity, Task
from pt_peft.experiment.site import Site
from pt_peft.export.formats import export
from pt_peft.export.timm_folder import CROP_MODES
from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter
from pt_peft.training.trainer import LocalTrainer

OUT = {"adapter": "a.safetensors", "peft": "peft", "timm": "timm", "onnx": "a.onnx", "monai_bundle": "bundle"}
FLIPS = ("none", "all")
LABELS = {"multiclass": "a b c d b", "ordinal": "a b c d b", "multilabel": "a a|b c d|a b"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images in a folder for each class: wide, tall, square, of 12 bits in 16, of 16 bits; and one to train with."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    made = {
        "a/wide.png": draw.integers(0, 256, (30, 45, 3), np.uint8),
        "b/tall.jpg": draw.integers(0, 256, (70, 41), np.uint8),
        "b/square.bmp": draw.integers(0, 256, (32, 32, 3), np.uint8),
        "c/twelve.png": draw.integers(100, 4000, (40, 60), np.uint16),
        "d/sixteen.tif": draw.integers(0, 65536, (48, 32), np.uint16),
    }
    for name, array in made.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / name)
    Image.new("L", (9, 9)).save(folder / "train.png")
    return folder


@pytest.fixture(scope="module")
def exported(tiny, tiny_weights, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """A trained adapter in every format, by flips at test time and format."""
    found = {}
    for flips in FLIPS:
        folder = tmp_path_factory.mktemp(f"exported_{flips}")
        experiment = of(tiny, test_time_flips=flips, intensity="image", fit="squash")
        trainer = LocalTrainer(experiment, tiny_weights, torch.device("cpu"))
        draw = np.random.default_rng(0)
        tensors = {
            key: (value + draw.normal(size=value.shape, scale=0.3)).astype(np.float32)
            for key, value in trainer.initial.items()
        }
        header = adapter_header(experiment) | {"round": 2}
        save_adapter(folder / "adapter.safetensors", tensors, header)
        for name, out in OUT.items():
            export(folder / "adapter.safetensors", name, folder / out, tiny_weights)
            assert header_of(folder / out) == header
            found[flips, name] = folder / out
    return found


def of(tiny, **data):
    """LoRA, trained on a site's own images."""
    backbone = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    data = {"source": "site", "augment": [], **data}
    return changed(tiny, method={"name": "lora", "options": {}}, data=data, backbone=backbone)


def header_of(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return json.loads((path / "pt_peft.json").read_text())
    if path.suffix == ".safetensors":
        return load_adapter(path)[1]
    import onnx

    return json.loads(next(one.value for one in onnx.load(path).metadata_props if one.key == "pt_peft"))


def with_header(path: Path, header: dict[str, Any]) -> None:
    if path.is_dir():
        (path / "pt_peft.json").write_text(json.dumps(header))
    elif path.suffix == ".safetensors":
        save_adapter(path, load_adapter(path)[0], header)
    else:
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"pt_peft": json.dumps(header)})
        onnx.save(model, path)


def of_a_table(images: Path, folder: Path, task: str, stored: Path | None = None) -> Site:
    """The images in folders are test images. `stored`: where they are, if not in `images`."""
    rows = zip(sorted(images.glob("*/*")), LABELS[task].split(), strict=True)
    lines = [f"{file.relative_to(images).as_posix()},{label},test" for file, label in rows]
    (folder / "table.csv").write_text("\n".join(["file,label,split", *lines, "train.png,a,train"]))
    data = SiteData(images=str(stored or images), table=str(folder / "table.csv"), columns=Columns(split="split"))
    return Site(data=data, cache=str(folder / "cache"))


def evaluated(experiment, site: Site, weights: Path, adapter: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test images, uint8 (N,3,S,S), and the probabilities (N,K) that evaluation has of them."""
    split = load_site_data(experiment, site, "site-1", ["site-1"]).test
    logits, _ = LocalTrainer(experiment, weights, torch.device("cpu")).predict(load_adapter(adapter)[0], split)
    return split.images, shares_of(logits, experiment.data.task)


def shares_of(logits: torch.Tensor, task: str) -> np.ndarray:
    return (logits.sigmoid() if task == "multilabel" else logits.softmax(dim=1)).numpy()


@pytest.fixture
def predicted(monkeypatch, tiny_weights, tmp_path):
    """Runs ``predict``; returns the images that the model got, its probabilities, and the rows of the CSV."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    compute = predict.logits

    def watched(classifier, images):
        found = compute(classifier, images)
        seen.append((images, shares_of(torch.as_tensor(found), classifier.spec.task)))
        return found

    monkeypatch.setattr(predict, "logits", watched)

    def run(path: Path, images: Path) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
        seen.clear()
        out = tmp_path / "predictions.csv"
        out.unlink(missing_ok=True)
        arguments = [str(path), *map(str, sorted(images.glob("?"))), "--out", str(out), "--device", "cpu"]
        if path.name in (OUT["adapter"], OUT["peft"]):
            arguments += ["--backbone", str(tiny_weights)]
        assert main(["predict", *arguments]) == 0
        with out.open() as file:
            rows = list(csv.DictReader(file))
        images_seen, found = (np.concatenate(part) for part in zip(*seen, strict=True))
        return images_seen, found, rows

    return run


@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("intensity", get_args(Intensity))
def test_predict_sees_what_evaluation_saw(
    intensity, fit, task, tiny, tiny_weights, images, exported, predicted, tmp_path
):
    flips = FLIPS[(get_args(Fit).index(fit) + get_args(Intensity).index(intensity)) % 2]
    experiment = of(tiny, intensity=intensity, fit=fit, task=task, test_time_flips=flips)
    site = of_a_table(images, tmp_path, task)
    pixels, expected = evaluated(experiment, site, tiny_weights, exported[flips, "adapter"])
    for name in OUT:
        with_header(exported[flips, name], adapter_header(experiment) | {"round": 2})
        seen, found, rows = predicted(exported[flips, name], images)
        np.testing.assert_array_equal(seen, pixels)
        if name == "adapter":
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        for row, shares in zip(rows, found, strict=True):
            classes = [label for label, share in zip("abcd", shares, strict=True) if share > 0.5]
            best = "|".join(classes) if task == "multilabel" else "abcd"[shares.argmax()]
            assert row["prediction"] == best


def test_the_settings_matter(tiny, tiny_weights, images, exported, tmp_path):
    """Else the test above would compare nothing."""
    seen = set()
    for intensity, fit in itertools.product(get_args(Intensity), get_args(Fit)):
        experiment = of(tiny, intensity=intensity, fit=fit)
        pixels, _ = evaluated(
            experiment, of_a_table(images, tmp_path, "ordinal"), tiny_weights, exported["none", "adapter"]
        )
        seen.add(pixels.tobytes())
    assert len(seen) == 6
    ends = [
        evaluated(
            of(tiny, test_time_flips=flips),
            of_a_table(images, tmp_path, "ordinal"),
            tiny_weights,
            exported["none", "adapter"],
        )
        for flips in FLIPS
    ]
    assert not np.allclose(ends[0][1], ends[1][1], atol=1e-3)


@pytest.mark.parametrize("source", ["zip", "image_folder"])
def test_files_of_every_source(source, tiny, tiny_weights, images, exported, predicted, tmp_path):
    if source == "zip":
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for file in images.rglob("*.*"):
                archive.write(file, file.relative_to(images))
        site = of_a_table(images, tmp_path, "multiclass", stored=tmp_path / "images.zip")
    else:
        for split, name in itertools.product(("train", "test"), "abcd"):
            (tmp_path / "folder" / split / name).mkdir(parents=True)
            for file in (images / name).iterdir():
                Image.open(file).save(tmp_path / "folder" / split / name / file.name)
        images = tmp_path / "folder" / "test"
        site = Site(
            data=SiteData(source="image_folder", images=str(tmp_path / "folder")), cache=str(tmp_path / "cache")
        )
    experiment = of(tiny, intensity="image", fit="crop")
    pixels, expected = evaluated(experiment, site, tiny_weights, exported["none", "adapter"])
    with_header(exported["none", "adapter"], adapter_header(experiment) | {"round": 2})
    seen, found, _ = predicted(exported["none", "adapter"], images)
    np.testing.assert_array_equal(seen, pixels)
    np.testing.assert_array_equal(found, expected)


def test_the_header_has_the_whole_of_it(tiny, exported):
    experiment = of(tiny, intensity="image", fit="crop", test_time_flips="horizontal")
    assert adapter_header(experiment)["preprocessing"] == {
        "decoding": {
            "channels": "RGB",
            "intensity": "image",
            "image_size": 32,
            "fit": "crop",
            "pad_value": [102, 128, 153],
            "interpolation": "bicubic",
            "antialias": True,
        },
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
        "test_time_flips": "horizontal",
    }
    config = json.loads((exported["none", "timm"] / "config.json").read_text())["pretrained_cfg"]
    assert (config["crop_mode"], config["mean"], config["std"]) == ("squash", [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("shape", [(30, 45), (70, 41), (32, 32)])
def test_timms_own_transform_is_nearly_the_same(fit, shape, tiny):
    """Pillow's resizing differs from torch's by a level or two. (With ``crop`` timm's middle may lie a pixel off.)"""
    array = np.array(Image.effect_noise((shape[1] // 5, shape[0] // 5), 60).resize(shape[::-1]).convert("RGB"))
    preprocessing = of(tiny, fit=fit).preprocessing
    (ours,) = transform_arrays([array], preprocessing.decoding)
    theirs = cast(Any, create_transform)(
        (3, 32, 32), mean=preprocessing.mean, std=preprocessing.std, crop_pct=1.0, interpolation="bicubic",
        crop_mode=CROP_MODES[fit],
    )(Image.fromarray(array))  # fmt: skip
    mean, std = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    assert np.abs((theirs.numpy() * std + mean) * 255 - ours).max() <= 4


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"preprocessing": None}, "has no field 'preprocessing', so nobody knows how its images were scaled and cut"),
        ({"mean": [0.1, 0.5, 0.6]}, "mean' is (0.1, 0.5, 0.6), but 'model.backbone' has (0.4, 0.5, 0.6)"),
        ({"test_time_flips": "vertical"}, "'test_time_flips' is \"vertical\""),
        ({"gamma": 2}, "field 'gamma' is unknown"),
    ],
    ids=["none", "other mean", "unknown flips", "unknown field"],
)
def test_a_header_without_it_is_refused(name, damage, message, tiny, tiny_weights, exported, images, tmp_path, capsys):
    """An older version's files had none: whatever was assumed could be wrong without a word."""
    header = adapter_header(of(tiny)) | {"round": 2}
    broken = {**header, **damage} if "preprocessing" in damage else header | {
        "preprocessing": header["preprocessing"] | damage
    }  # fmt: skip
    with_header(exported["none", name], broken)
    out = tmp_path / "p.csv"
    needed = ["--backbone", str(tiny_weights)]
    assert main(["predict", str(exported["none", name]), str(images), "--out", str(out), *needed]) == 1
    error = capsys.readouterr().err
    assert message in error, error
    assert not out.exists()
