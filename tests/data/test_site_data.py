"""Sites and batches end to end, on made and on real data."""

import logging
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from helpers import ROOT, split_counts
from pt_peft.data.lesions import draw_lesions
from pt_peft.data.site_data import FeatureSplit, ImageSplit, batches, load_site_data
from pt_peft.data.sources import site_images
from pt_peft.data.splits import assign_splits
from pt_peft.data.table import read_table
from pt_peft.data.views import view
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site


@pytest.fixture
def split() -> ImageSplit:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16), dtype=np.uint8)
    images.setflags(write=False)
    return ImageSplit(images, np.arange(10))


def epoch(*arguments, **options) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    pairs = list(batches(*arguments, **options))
    images, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    return images, labels, [len(labels) for _, labels in pairs]


def test_without_a_seed_batches_are_in_order(split):
    images, labels, sizes = epoch(split, 4, seed=None, augment=("flip",))
    assert sizes == [4, 4, 2]
    assert labels.tolist() == list(range(10))
    assert labels.dtype == torch.int64
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.tensor(split.images).float() / 255)


@pytest.mark.parametrize("augment", [(), ("flip", "rotate90", "intensity")])
def test_a_seed_decides_the_batches_bit_for_bit(split, augment):
    first, again, other = (epoch(split, 4, seed=seed, augment=augment) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert sorted(first[1].tolist()) == list(range(10))
    assert first[2] == [4, 4, 2]


def test_features_come_in_the_images_order_and_unchanged(split):
    features = np.random.default_rng(1).standard_normal((10, 1, 5, 8), np.float32)
    found, labels, sizes = epoch(FeatureSplit(features, (0,), split.labels), 4, seed=1)
    assert labels.tolist() == epoch(split, 4, seed=1)[1].tolist()
    assert torch.equal(found, torch.tensor(features)[labels, 0])
    assert sizes == [4, 4, 2]


def test_features_have_the_views_of_the_augmented_images(split):
    """Which are the images themselves here, by their four flips."""
    views = (0, 2, 4, 6)
    pixels = torch.tensor(split.images).float() / 255
    features = torch.stack([view(pixels, number) for number in views], dim=1).numpy()
    for seed in (1, 2):
        found, labels, _ = epoch(FeatureSplit(features, views, split.labels), 4, seed=seed, augment=("flip",))
        images, same, _ = epoch(split, 4, seed=seed, augment=("flip",))
        assert torch.equal(labels, same)
        assert torch.equal(found, images)
    halves = FeatureSplit(features.astype(np.float16), views, split.labels)
    assert next(batches(halves, 4, seed=1, augment=("flip",)))[0].dtype == torch.float32


def test_batches_leave_the_global_generators_alone(split):
    before = torch.get_rng_state(), str(np.random.get_state())
    epoch(split, 4, seed=1, augment=("flip", "intensity"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


def test_an_empty_split_has_no_batches():
    empty = ImageSplit(np.empty((0, 3, 16, 16), np.uint8), np.empty(0, np.int64))
    assert list(batches(empty, 4, seed=None)) == []


def test_loading_logs_the_classes(make_experiment, make_csv_site, rows, caplog):
    with caplog.at_level(logging.INFO):
        data = load_site_data(make_experiment(), make_csv_site(rows), "a", ["a"])
    assert [len(data.train), len(data.val), len(data.test)] == [6, 2, 2]
    assert "site a, train: 6 images (red 3, blue 3)" in caplog.text
    assert "preparing 10 images of 16 px" in caplog.text
    assert "prepared 10 images in" in caplog.text


def test_a_changed_image_is_decoded_anew(make_experiment, make_csv_site, rows, tmp_path):
    site = make_csv_site(rows)
    before = load_site_data(make_experiment(), site, "a", ["a"]).train.images.copy()
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    after = load_site_data(make_experiment(), site, "a", ["a"]).train.images
    assert (before[1] != after[1]).any()
    assert (after[1] == after[0]).all()


def test_a_moved_folder_keeps_its_cache(make_experiment, make_csv_site, rows, tmp_path, caplog):
    site = make_csv_site(rows)
    load_site_data(make_experiment(), site, "a", ["a"])
    (tmp_path / "images").rename(tmp_path / "moved")
    data = site.data.model_copy(update={"images": str(tmp_path / "moved")})
    with caplog.at_level(logging.INFO):
        load_site_data(make_experiment(), site.model_copy(update={"data": data}), "a", ["a"])
    assert "preparing" not in caplog.text


def test_another_meaning_of_the_values_decodes_nothing_anew(make_experiment, make_csv_site, rows, caplog):
    """Pixels do not depend on it, and labels do not come from the cache."""
    site = make_csv_site(rows)
    before = load_site_data(make_experiment(), site, "a", ["a"]).train
    classes = {"red": ("blue",), "blue": ("red",)}
    site = site.model_copy(update={"data": site.data.model_copy(update={"classes": classes})})
    with caplog.at_level(logging.INFO):
        after = load_site_data(make_experiment(), site, "a", ["a"]).train
    assert "preparing" not in caplog.text
    assert after.labels.tolist() == [1 - label for label in before.labels]
    assert np.array_equal(after.images, before.images)


def test_a_file_that_turns_unreadable_costs_a_warning_and_itself(
    make_experiment, make_csv_site, rows, tmp_path, caplog
):
    site = make_csv_site(rows).model_copy(update={"max_unreadable": 0.1})
    before = load_site_data(make_experiment(), site, "a", ["a"]).train
    image = tmp_path / "images" / "1.png"
    image.write_bytes(image.read_bytes()[:40])
    after = load_site_data(make_experiment(), site, "a", ["a"]).train
    assert "image '1.png' cannot be decoded" in caplog.text
    assert "It is left out: of 10 images" in caplog.text
    assert np.array_equal(after.images, before.images[[0, 2, 3, 4, 5]])
    assert after.labels.tolist() == [0, 0, 1, 0, 1]
    (tmp_path / "images" / "7.png").unlink()
    with pytest.raises(
        UserError, match=r"image '7.png' does not exist. It is image 2 that cannot be read; of 10 images"
    ):
        load_site_data(make_experiment(), site, "a", ["a"])


WARM = """
import sys
from pathlib import Path
from pt_peft.data.site_data import batches, load_site_data
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site

experiment, site = (kind.read(Path(path)) for kind, path in zip((Experiment, Site), sys.argv[1:]))
data = load_site_data(experiment, site, "a", ["a"])
print(sum(len(labels) for _, labels in batches(data.train, 4, seed=1)), "monai" in sys.modules)
"""


def test_a_warm_site_does_not_import_monai(make_experiment, make_csv_site, rows, tmp_path):
    experiment, site = make_experiment(), make_csv_site(rows)
    load_site_data(experiment, site, "a", ["a"])
    (tmp_path / "experiment.json").write_text(experiment.to_json())
    (tmp_path / "site.json").write_text(site.model_dump_json())
    command = [sys.executable, "-c", WARM, tmp_path / "experiment.json", tmp_path / "site.json"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == ["6", "False"]


def test_lesions_are_the_generators_own_with_their_labels(make_experiment, tmp_path):
    data = {"source": "lesions", "classes": ["a", "b", "c"], "images_per_site": {"train": 12, "val": 7}}
    experiment = make_experiment(seed=4, data=data)
    for _ in ("drawn", "from the cache"):
        loaded = load_site_data(experiment, Site(cache=str(tmp_path)), "site-1", ["site-1", "site-2"])
        assert len(loaded.test) == 0
        for name, count in data["images_per_site"].items():
            images, labels = draw_lesions(seed=4, site="site-1", split=name, count=count, size=16, num_classes=3)
            split = getattr(loaded, name)
            assert split.labels.tolist() == labels.tolist()
            assert np.array_equal(split.images, images.transpose(0, 3, 1, 2))


HAM10000 = {"source": "site", "classes": ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")}


def ham10000_site(folder, **fields) -> Site:
    data = {
        "images": str(folder / "images.zip"),
        "table": str(folder / "metadata.csv"),
        "columns": {"label": "dx", "group": "lesion_id", "site": "site"},
        "pooled": True,
    }
    return Site.model_validate({"data": data, **fields})


def test_ham10000_has_its_readme_counts_at_each_site(make_experiment, shared_data):
    folder = shared_data("ham10000_200x150")
    site = ham10000_site(folder)
    experiment = make_experiment(data=HAM10000, partition={"kind": "natural"})
    names = {"rosendahl": 2259, "vidir_modern": 3363, "vidir_molemax": 3954, "vienna_dias": 439}
    counts = {name: split_counts(site_images(experiment, site, name, list(names))) for name in names}
    assert {name: sum(of.values()) for name, of in counts.items()} == names
    assert {split: sum(of[split] for of in counts.values()) for split in ("train", "val", "test")} == {
        "train": 6984,
        "val": 1019,
        "test": 2012,
    }


def test_ham10000_lesions_stay_in_one_drawn_split(shared_data):
    site = ham10000_site(shared_data("ham10000_200x150"))
    own = site.data.model_copy(update={"columns": site.data.columns.model_copy(update={"split": None})})
    data = Data(source="site", classes=HAM10000["classes"])
    items = assign_splits(read_table(Site(data=own), data), seed=0)
    splits = {}
    for item in items:
        splits.setdefault(item.group, set()).add(item.split)
    assert all(len(of) == 1 for of in splits.values())
    assert Counter(next(iter(of)) for of in splits.values()) == {"train": 5229, "val": 747, "test": 1494}
    # Stratified: of every site's melanomas as many as of all.
    for site in ("rosendahl", "vidir_modern"):
        melanomas = Counter(item.split for item in items if item.site == site and item.labels == (4,))
        assert melanomas["test"] / melanomas.total() == pytest.approx(0.2, abs=0.03)


def test_a_small_ham10000_site_decodes(make_experiment, shared_data, tmp_path):
    folder = shared_data("ham10000_200x150")
    site = ham10000_site(folder, cache=str(tmp_path))
    data = load_site_data(make_experiment(data=HAM10000, partition={"kind": "natural"}), site, "vienna_dias", [])
    labels = np.concatenate([data.train.labels, data.val.labels, data.test.labels])
    assert np.bincount(labels, minlength=7).tolist() == [0, 5, 10, 4, 67, 350, 3]
    assert 100 < data.train.images.mean() < 220
    assert data.train.images.std() > 10


def test_pneumoniamnist_has_its_readme_counts(make_experiment, shared_data, tmp_path):
    path = shared_data("pneumoniamnist_28") / "pneumoniamnist.npz"
    experiment = make_experiment(data={"source": "site", "classes": ["normal", "pneumonia"]}, partition={"kind": "iid"})
    site = Site.model_validate({"data": {"source": "npz", "npz": str(path), "pooled": True}, "cache": str(tmp_path)})
    names = ["a", "b", "c", "d"]
    counts = [split_counts(site_images(experiment, site, name, names)) for name in names]
    assert {split: sum(of[split] for of in counts) for split in ("train", "val", "test")} == {
        "train": 4708,
        "val": 524,
        "test": 624,
    }
    assert {of["train"] for of in counts} == {1177}
