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


def test_splits_below_the_classes(tmp_path, caplog):
    """As in archives that a class at a time was put into; drawn anew, test images would be trained on."""
    names = ("benign/Train/p1/a.png", "benign/validation/b.png", "malignant/TEST/c.png")
    items = read_image_folder(tree(tmp_path / "f", *names), DATA, OWN)
    assert [(item.file, item.labels, item.split) for item in items] == [
        (names[0], (0,), "train"),
        (names[1], (0,), "val"),
        (names[2], (1,), "test"),
    ]
    assert not caplog.messages
    with pytest.raises(UserError, match=r"'malignant/d.png' is in no split, but others are; put all into train, "):
        read_image_folder(tree(tmp_path / "f", "malignant/d.png"), DATA, OWN)


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
        (["a.png"], r"1 of 1 images are not taken: they are not in a folder of a class; .* \(first: 'a.png'\)"),
        (
            ["train/a.png", "b.png"],
            r"2 of 2 images .* not in a folder of a class; .* \(first: 'b.png', 'train/a.png'\)",
        ),
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


def test_folders_as_they_come(tmp_path):
    """Names of splits in any case, a folder on top, Unicode's other form, blanks: as if they were not."""
    names = ("Training/me\u0301lanome/a.png", "VALID/n\u00e6vus /b.png", "Testing/n\u00e6vus/c.png")
    data = Data(source="site", classes=("m\u00e9lanome", "n\u00e6vus"))
    folder = tree(tmp_path / "f", *(f"some export/top/{name}" for name in names), "some export/readme.txt.png")
    (folder / "some export" / "readme.txt.png").unlink()
    (folder / "some export" / "readme.txt").write_text("no image")
    assert [(item.file.removeprefix("some export/top/"), item.labels, item.split, item.values) for item in
            read_image_folder(folder, data, OWN)] == [
        (names[2], (1,), "test", ("n\u00e6vus",)),
        (names[0], (0,), "train", ("m\u00e9lanome",)),
        (names[1], (1,), "val", ("n\u00e6vus",)),
    ]  # fmt: skip


def test_a_class_may_be_called_like_a_split(tmp_path):
    data = Data(source="site", classes=("control", "test"))
    items = read_image_folder(tree(tmp_path, "control/a.png", "test/b.png"), data, OWN)
    assert [(item.labels, item.split) for item in items] == [((0,), None), ((1,), None)]


def test_a_copy_of_the_folder_within_it_is_left_out(tmp_path, caplog):
    names = ("train/benign/a.png", "test/malignant/b.png")
    folder = tree(tmp_path / "chest_xray", *names, *(f"chest_xray/{name}" for name in names))
    assert {item.file for item in read_image_folder(folder, DATA, OWN)} == set(names)
    (warning,) = caplog.messages
    assert "2 of 4 images are not taken: folder 'chest_xray' has copies of what is beside it" in warning
    Image.new("L", (5, 5)).save(folder / "chest_xray" / names[0])  # other content
    with pytest.raises(
        UserError, match=r"folder 'chest_xray' \(1 image\(s\), the first 'chest_xray/train/benign/a.png"
    ):
        read_image_folder(folder, DATA, OWN)


def test_values_that_are_left_out_are_counted(tmp_path, caplog):
    folder = tree(tmp_path, "benign/a.png", "malignant/b.png", "unsure/c.png", "unsure/d.png")
    own = OWN.model_copy(update={"leave_out": ("unsure",)})
    assert [item.file for item in read_image_folder(folder, DATA, own)] == ["benign/a.png", "malignant/b.png"]
    assert "data.leave_out of site.json leaves out 'unsure' in 2 of 4 images" in caplog.text


def test_folders_below_classes_can_be_left_out(tmp_path, caplog):
    """The COVID-19 Radiography Database has images/ and masks/ below each class."""
    folder = tree(tmp_path, *(f"{one}/{part}/a.png" for one in DATA.classes for part in ("images", "masks")))
    own = OWN.model_copy(update={"leave_out": ("masks",), "group_pattern": "(?P<group>.*)"})
    assert [item.file for item in read_image_folder(folder, DATA, own)] == [
        "benign/images/a.png",
        "malignant/images/a.png",
    ]
    assert "data.leave_out of site.json leaves out 'masks' in 2 of 4 images" in caplog.text


def test_folders_below_classes_may_be_patients(tmp_path, caplog):
    folder = tree(tmp_path / "f", "benign/p1/a.png", "benign/p1/b.png", "malignant/c.png")
    assert [item.group for item in read_image_folder(folder, DATA, OWN)][:2] == ["benign/p1/a.png", "benign/p1/b.png"]
    (warning,) = caplog.messages
    assert "2 of 3 images (first: 'benign/p1/a.png', 'benign/p1/b.png') are in folders below their class" in warning
    assert "data.group_pattern" in warning
    caplog.clear()
    read_image_folder(folder, DATA, OWN.model_copy(update={"group_pattern": "(?P<group>.*)/"}))
    read_image_folder(tree(tmp_path / "g", "train/benign/p/a.png", "val/malignant/q/b.png"), DATA, OWN)  # none is drawn
    assert not caplog.messages
