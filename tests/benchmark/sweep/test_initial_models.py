"""Pre-trained weights are kept by all that they follow from: images by content, recipe, backbone, seed."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmark.sweep import initial_models
from benchmark.sweep.initial_models import initial_weights
from benchmark.sweep.suite import InitialModel

SHAPES = {"a": (20, 30), "b": (24, 24)}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Eight images, of which every second one is square."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    images = tmp_path / "images"
    images.mkdir()
    for index in range(8):
        Image.new("L", SHAPES["ab"[index % 2]], 10 * index).save(images / f"{index}.png")
    labels(images, "abababab")
    return images


def labels(folder: Path, given: str) -> None:
    rows = [f"{index}.png,{label},train" for index, label in enumerate(given)]
    (folder / "table.csv").write_text("\n".join(["file,label,split", *rows]))


@pytest.fixture
def path_of(tmp_path, tiny, tiny_weights, monkeypatch):
    """The path of the weights that are pre-trained on the images in a folder; pre-trains nothing."""
    monkeypatch.setattr(initial_models, "pretrain", lambda experiment, site, recipe, path: path.write_bytes(b""))

    def find(folder: Path, data=None, backbone=None, **pretraining) -> Path:
        fields = {
            "backbone": tiny.backbone.model_dump(include={"name", "kwargs", "image_size"}) | (backbone or {}),
            "weights": str(tiny_weights),
            "pretraining": {
                "data": {"source": "site", "classes": ["a", "b"], **(data or {})},
                "site": {"images": str(folder), "table": str(folder / "table.csv"), "columns": {"split": "split"}},
                **pretraining,
            },
        }
        model = InitialModel.model_validate(fields)
        found = initial_weights("tiny", model, {}, tmp_path / "cache")
        assert found
        return found

    return find


def test_what_they_follow_from_and_nothing_else(folder, path_of, tmp_path):
    before = path_of(folder)
    assert path_of(folder) == before
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert path_of(elsewhere) == before, "the same content at another place and time"
    found = [
        before,
        path_of(folder, epochs=6),
        path_of(folder, batch_size=32),
        path_of(folder, objective="mae"),
        path_of(folder, learning_rate=0.5),
        path_of(folder, data={"augment": ["flip"]}),
        path_of(folder, data={"fit": "crop"}),
        path_of(folder, backbone={"image_size": 16}),
        path_of(folder, backbone={"std": [0.4, 0.4, 0.4]}),
    ]
    labels(folder, "abababaa")
    found.append(path_of(folder))
    labels(folder, "abababab")
    Image.new("L", SHAPES["a"], 99).save(folder / "0.png")
    found.append(path_of(folder))
    assert len(set(found)) == len(found)
