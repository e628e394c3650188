"""Folders with one sub-folder for each class."""

import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pt_peft.data.image_folder import read_image_folder
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

DATA = Data(source="site", classes=("benign", "malignant"))
OWN = SiteData(source="image_folder")


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
    return folder


def test_classes_alone_and_below_splits(tmp_path):
    plain = read_image_folder(tree(tmp_path / "plain", "benign/a.png", "malignant/deeper/b.JPG"), DATA, OWN)
    assert [(item.file, item.labels, item.split) for item in plain] == [
        ("benign/a.png", (0,), None),
        ("malignant/deeper/b.JPG", (1,), None),
    ]
    split = tree(tmp_path / "split", "train/benign/a.png", "valid/benign/b.png", "test/malignant/c.png")
    assert [(item.labels, item.split) for item in read_image_folder(split, DATA, OWN)] == [
        ((1,), "test"),
        ((0,), "train"),
        ((0,), "val"),
    ]


def test_a_zip_archive_is_the_same_and_clutter_is_left_out(tmp_path):
    folder = tree(tmp_path / "f", "benign/a.png", "malignant/b.png", "__MACOSX/benign/a.png", "benign/.hidden.png")
    (folder / "benign" / "Thumbs.db").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    assert read_image_folder(folder, DATA, OWN) == read_image_folder(tmp_path / "f.zip", DATA, OWN)
    assert len(read_image_folder(folder, DATA, OWN)) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["benign/a.png", "unknown/a.png", "unknown/b.png"],
            r"folder 'unknown' \(2 image\(s\), the first 'unknown/a.png'\) means none of the experiment's classes "
            r"\(benign, malignant\)",
        ),
        (["a.png"], "'a.png' is not in a folder of a class"),
        (["train/a.png"], "'train/a.png' is not in a folder of a class"),
        (["train/benign/a.png", "malignant/b.png"], "'malignant/b.png' is in no split, but others are"),
        ([], "has no images"),
    ],
)
def test_mistakes(names, message, tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match=message):
        read_image_folder(tree(tmp_path / "f", *names), DATA, OWN)


def test_chest_x_rays_as_an_image_folder(shared, tmp_path):
    """Real images, put into folders by their class as the tables have it."""
    import csv

    with (shared / "chest_xray_kermany_224" / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))[::40]
    with (
        zipfile.ZipFile(shared / "chest_xray_kermany_224" / "images.zip") as images,
        zipfile.ZipFile(tmp_path / "x.zip", "w") as out,
    ):
        for row in rows:
            out.writestr(f"{row['split']}/{row['subtype']}/{row['file'].rpartition('/')[2]}", images.read(row["file"]))
    items = read_image_folder(tmp_path / "x.zip", Data(source="site", classes=("normal", "bacteria", "virus")), OWN)
    assert Counter(item.split for item in items) == Counter(row["split"] for row in rows)


def test_links_are_followed_once_and_odd_names_and_folders_are_named(tmp_path):
    folder = tree(tmp_path / "f", "benign/a.png", "malignant/b.png")
    (tmp_path / "elsewhere").mkdir()
    (folder / "malignant" / "b.png").rename(tmp_path / "elsewhere" / "b.png")
    (folder / "malignant").rmdir()
    (folder / "malignant").symlink_to(tmp_path / "elsewhere")
    (folder / "benign" / "loop").symlink_to(folder)
    assert [item.file for item in read_image_folder(folder, DATA, OWN)] == ["benign/a.png", "malignant/b.png"]
    (folder / "benign" / "caf\udce9.png").touch()
    with pytest.raises(UserError, match=r"file 'benign/caf\\udce9.png' is not named in UTF-8; rename it"):
        read_image_folder(folder, DATA, OWN)
