import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from pt_peft import schema
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")

SIZE = 16
CLASSES = ["red", "blue"]


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """Makes an experiment over a site's own images of two classes at 16 px; keywords replace sections."""

    def make(**sections) -> Experiment:
        value = {
            "name": "test",
            "backbone": {"name": "vit", "image_size": SIZE, "sha256": "0" * 64},
            "data": {"source": "site", "classes": CLASSES},
            "method": {"name": "lora"},
        }
        return schema.parse(Experiment, value | sections, "test")

    return make


@pytest.fixture
def make_csv_site(tmp_path) -> Callable[..., Site]:
    """Writes a table of `rows` (dicts) and for each an image of the label's colour, or unless `images` an empty file.

    Keywords are further fields of ``data`` in site.json.
    """

    def make(rows: Sequence[dict], images: bool = True, **data) -> Site:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        if images:
            for row in rows:
                Image.new("RGB", (20, 18), row["label"]).save(folder / row["file"])
        else:
            for row in rows:
                if row["file"].isprintable() and not {"/", "\\"} & set(row["file"]):
                    (folder / row["file"]).touch()
        table = tmp_path / "table.csv"
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return _site(tmp_path, images=str(folder), table=str(table), **data)

    return make


@pytest.fixture
def make_npz_site(tmp_path) -> Callable[..., Site]:
    """Writes an ``.npz`` of four grey 8 px images in each split; keywords replace arrays, None leaves one out.

    `data` has further fields of ``data`` in site.json.
    """

    def make(data: dict | None = None, **replaced) -> Site:
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
            arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
        arrays = {name: array for name, array in (arrays | replaced).items() if array is not None}
        path = tmp_path / "images.npz"
        np.savez_compressed(path, **arrays)
        return _site(tmp_path, **{"source": "npz", "npz": str(path), "pooled": True} | (data or {}))

    return make


@pytest.fixture
def rows() -> list[dict]:
    """Ten rows: five of each class; six train, two val, two test."""
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    return [{"file": f"{i}.png", "label": CLASSES[i % 2], "split": split} for i, split in enumerate(splits)]


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set; skips the test where it is not there."""

    def find(name: str) -> Path:
        root = Path(os.environ.get("PT_PEFT_SHARED") or ROOT.parent / "shared")
        folder = root / "data" / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there; set PT_PEFT_SHARED to the folder that holds data/{name}")
        return folder

    return find


def _site(tmp_path: Path, **data) -> Site:
    return schema.parse(Site, {"data": data, "cache": str(tmp_path / "cache")}, "site.json")
