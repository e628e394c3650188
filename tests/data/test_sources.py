"""Each mistake in a site's data is one sentence that says where it is and what would be right."""

import os
import re
import zipfile

import numpy as np
import pytest
from decoding import good
from PIL import Image

from helpers import at_size, split_counts
from pt_peft import schema
from pt_peft.data.items import SPLITS
from pt_peft.data.sources import site_images
from pt_peft.data.table import read_table
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

RED = Data(source="site", classes=("red", "blue"))
NPZ = {"source": "site", "classes": ["normal", "pneumonia"]}


def found(experiment, site):
    return site_images(experiment, site, "a", ["a", "b"])


def failures(images, split) -> list[str]:
    return [str(image) for image in images.decoded(split, at_size(16)) if isinstance(image, UserError)]


def test_counts_and_labels_of_a_table(make_experiment, make_csv_site, rows):
    images = found(make_experiment(), make_csv_site(rows))
    assert split_counts(images) == {"train": 6, "val": 2, "test": 2}
    assert [item.labels for item in images.items("val")] == [(0,), (1,)]
    assert [tuple(image[:, 8, 8]) for image in good(images.decoded("val", at_size(16)))] == [(255, 0, 0), (0, 0, 255)]


def test_a_table_without_splits_gets_them_drawn(make_experiment, make_csv_site, rows):
    assert split_counts(found(make_experiment(), make_csv_site(rows, columns={"split": None}))) == {
        "train": 7,
        "val": 1,
        "test": 2,
    }


def test_a_fold_takes_the_place_of_the_seeds_splits_and_leaves_a_tables_own(make_experiment, make_csv_site, rows):
    def tested(seed: int, fold: dict | None, columns: dict) -> set[str]:
        experiment = make_experiment(seed=seed, data={"source": "site", "classes": ["red", "blue"], "fold": fold})
        site = make_csv_site(rows, columns=columns)
        site = site.model_copy(update={"data": site.data.model_copy(update={"pooled": True})})
        return {item.file for item in found(experiment, site).items("test")}

    folds = [tested(seed, {"number": seed, "of": 5}, {"split": None}) for seed in range(1, 6)]
    assert [len(fold) for fold in folds] == [2] * 5
    assert set.union(*folds) == {row["file"] for row in rows}
    assert tested(7, {"number": 1, "of": 5}, {"split": None}) == folds[0]
    with pytest.raises(UserError, match=r"'data\.columns\.split' must be null with data\.fold: .*; it is 'split'"):
        tested(0, {"number": 1, "of": 5}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label": "green"},
            r"table\.csv: column 'label': 'green' \(1 image\(s\), the first in line 4\) means none of the experiment's "
            r"classes \(red, blue\); 'data\.classes' of site\.json says",
        ),
        (
            {"split": "dev"},
            r"1 of 10 rows are not taken: column 'split' should be train, val or test \(first: line 4 'dev'\)",
        ),
        ({"file": "1.png"}, r"1 of 10 rows .* a row above has the same image; .* \(first: line 4 '1\.png' as line 3\)"),
        (
            {"file": "../1.png"},
            r"'file' should be the path of a file inside .*images, such as '\d\.png' \(first: line 4 '\.\./1\.png'\)",
        ),
        ({"file": "a/../../1.png"}, "should be the path of a file inside .* line 4"),
        ({"file": "/etc/1.png"}, "should be the path of a file inside .* line 4"),
        ({"file": "C:\\1.png"}, "should be the path of a file inside .* line 4"),
        ({"file": "..\\1.png"}, "should be the path of a file inside .* line 4"),
        ({"file": ""}, r"column 'file' is empty \(first: line 4\)"),
        ({"label": ""}, r"column 'label' is empty \(first: line 4\)"),
    ],
)
def test_a_wrong_row_is_named(make_experiment, make_csv_site, rows, change, message):
    rows[2] |= change
    with pytest.raises(UserError, match=message):
        found(make_experiment(), make_csv_site(rows, images=False))


def written(tmp_path, content: bytes) -> Site:
    (tmp_path / "images").mkdir()
    (tmp_path / "table.csv").write_bytes(content)
    return Site(data=SiteData(table=str(tmp_path / "table.csv"), images=str(tmp_path / "images")))


def test_a_name_with_dots_is_not_a_way_out(tmp_path):
    site = written(tmp_path, b"file,label,split\na..b/c..d.png,red,train\n")
    (tmp_path / "images" / "a..b").mkdir()
    (tmp_path / "images" / "a..b" / "c..d.png").touch()
    assert read_table(site, RED)[0].file == "a..b/c..d.png"


@pytest.mark.parametrize("name", ["../secret.png", "/{}/secret.png"])
def test_no_allowance_for_missing_images_opens_a_file_outside(tmp_path, name):
    name = name.format(tmp_path.as_posix().lstrip("/"))
    (tmp_path / "secret.png").touch()
    site = written(tmp_path, f"file,label,split\na.png,red,train\n{name},red,train\n".encode())
    (tmp_path / "images" / "a.png").touch()
    with pytest.raises(
        UserError,
        match=r"should be the path of a file inside .*images, such as 'a\.png' \(first: line 3 '.*secret.png'",
    ):
        read_table(site.model_copy(update={"max_unreadable": 0.9}), RED)


def test_a_missing_column_is_named_with_those_there(make_experiment, make_csv_site, rows):
    message = r"has no column 'diagnosis' \(data\.columns\.label in site\.json\); its columns are file, label, split"
    with pytest.raises(UserError, match=message):
        found(make_experiment(), make_csv_site(rows, columns={"label": "diagnosis"}))


def test_a_group_in_two_splits_is_refused(make_experiment, make_csv_site, rows):
    rows = [row | {"patient": "p7"} for row in rows]
    message = (
        r"4 of 10 rows .* group of column 'patient' in another split; .*: line 8 'p7' in 'val', line 2 in 'train', li"
    )
    with pytest.raises(UserError, match=message):
        found(make_experiment(), make_csv_site(rows, columns={"group": "patient"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "its columns are none"), (b"file,label,split\n", "has no rows"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_an_unreadable_table_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"table\.csv: .*{message}"):
        read_table(written(tmp_path, content), RED)


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"columns": {"group": "patient"}}, "'data.columns'"),
        ({"table": "t.csv", "columns": {"group": "patient"}}, "'data.table' and 'data.columns'"),
        ({"columns": {}}, None),  # as without it
    ],
)
def test_fields_that_the_source_does_not_read(make_experiment, tmp_path, caplog, fields, ignored):
    """A folder has no columns: the groups that somebody names there would not be kept, without a word."""
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), name).save(tmp_path / name / "a.png")
    own = {"source": "image_folder", "images": str(tmp_path)} | fields
    found(make_experiment(), schema.parse(Site, {"data": own}, "site.json"))
    sentence = f"site.json: data.source 'image_folder' does not read {ignored}."
    assert caplog.messages == ([sentence] if ignored else [])


def test_no_training_images(make_experiment, make_csv_site, rows):
    with pytest.raises(UserError, match="site 'a' has no training images"):
        found(make_experiment(), make_csv_site([row | {"split": "test"} for row in rows]))


def test_an_image_missing_from_the_folder(make_experiment, make_csv_site, rows, tmp_path):
    site = make_csv_site(rows)
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 10 rows .* path of a file inside .*images, such as '\d\.png' \(first: line 5 '3\.png'\)"
    ):
        found(make_experiment(), site)
    (error,) = failures(found(make_experiment(), tolerant(site)), "train")
    assert error.endswith("images: image '3.png' does not exist.")


def tolerant(site):
    """The site if one of ten images may be unreadable."""
    return site.model_copy(update={"max_unreadable": 0.1})


def zipped(site, path, leave_out=()):
    """The site with its folder of images packed into the zip archive `path`."""
    folder = site.existing("data.images")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            if file.name not in leave_out:
                archive.write(file, file.name)
    return site.model_copy(update={"data": site.data.model_copy(update={"images": str(path)})})


def test_a_zip_gives_what_the_folder_gives(make_experiment, make_csv_site, rows, tmp_path):
    site = make_csv_site(rows)
    folder = list(found(make_experiment(), site).decoded("test", at_size(16)))
    archive = list(found(make_experiment(), zipped(site, tmp_path / "images.zip")).decoded("test", at_size(16)))
    for expected, image in zip(folder, archive, strict=True):
        np.testing.assert_array_equal(image, expected)


def test_an_image_missing_from_the_zip(make_experiment, make_csv_site, rows, tmp_path):
    site = zipped(make_csv_site(rows), tmp_path / "images.zip", leave_out={"5.png"})
    (error,) = failures(found(make_experiment(), tolerant(site)), "train")
    assert error.endswith("images.zip: image '5.png' does not exist.")


def test_something_else_than_a_zip(make_experiment, make_csv_site, rows, tmp_path):
    other = tmp_path / "images.rar"
    other.write_bytes(b"Rar!")
    site = make_csv_site(rows)
    site = site.model_copy(update={"data": site.data.model_copy(update={"images": str(other)})})
    with pytest.raises(UserError, match=r"images\.rar: is neither a folder nor a readable zip archive"):
        next(found(make_experiment(), site).decoded("train", at_size(16)))


@pytest.mark.parametrize("damage", ["text", "cut off"])
def test_a_corrupt_image_is_named(make_experiment, make_csv_site, rows, tmp_path, damage):
    site = make_csv_site(rows)
    image = tmp_path / "images" / "6.png"
    Image.effect_noise((64, 64), 50).save(image)
    image.write_bytes(b"not an image" if damage == "text" else image.read_bytes()[:1000])
    (error,) = failures(found(make_experiment(), site), "val")
    assert "images: image '6.png' cannot be decoded" in error


def test_counts_and_pixels_of_an_npz(make_experiment, make_npz_site):
    images = found(make_experiment(data=NPZ), make_npz_site())
    assert split_counts(images) == {"train": 4, "val": 4, "test": 4}
    decoded = list(images.decoded("train", at_size(8)))
    assert [item.labels for item in images.items("train")] == [(0,), (1,), (0,), (1,)]
    expected = np.arange(64, 128, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(decoded[1], np.stack([expected] * 3))


def test_an_npz_without_validation_images_keeps_its_splits(make_experiment, make_npz_site):
    site = make_npz_site(val_images=np.zeros((0, 6, 6), np.uint8), val_labels=np.zeros((0, 1), np.uint8))
    images = found(make_experiment(data=NPZ), site)
    assert split_counts(images)["val"] == 0
    for split in SPLITS:
        assert len(list(images.decoded(split, at_size(8)))) == split_counts(images)[split]


def test_rgb_npz_and_iid_shares(make_experiment, make_npz_site):
    rgb = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    site = make_npz_site(train_images=rgb, train_labels=np.array([0, 1, 0, 1]))
    experiment = make_experiment(data=NPZ, partition={"kind": "iid"})
    shares = [site_images(experiment, site, name, ["a", "b"]) for name in "ab"]
    assert [split_counts(share)["train"] for share in shares] == [2, 2]
    decoded = [image.tobytes() for share in shares for image in good(share.decoded("train", at_size(8)))]
    assert sorted(decoded) == sorted(np.moveaxis(image, -1, 0).tobytes() for image in rgb)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"val_labels": None}, "has no array 'val_labels'; its arrays are test_images, .*train_labels, val_images"),
        ({"val_images": np.zeros((4, 8, 8))}, r"val_images is float64 \(4, 8, 8\); it should be uint8"),
        ({"val_images": np.zeros((4, 8), np.uint8)}, r"val_images is uint8 \(4, 8\)"),
        ({"val_images": np.zeros((4, 8, 8, 4), np.uint8)}, r"val_images is uint8 \(4, 8, 8, 4\)"),
        ({"val_images": np.asfortranarray(np.zeros((4, 8, 8), np.uint8))}, "in Fortran order"),
        ({"val_images": np.zeros((3, 8, 8), np.uint8)}, "has 3 val_images but 4 val_labels"),
        (
            {"val_labels": np.zeros((4, 2), np.uint8)},
            r"val_labels is uint8 \(4, 2\) \(data.task 'multilabel' would take it\); it should be",
        ),
        ({"val_labels": np.zeros(4)}, r"val_labels is float64 \(4,\)"),
        (
            {"val_labels": np.array([2, 1, 2, 0])},
            r"the label '2' \(2 image\(s\), the first val_labels\[0\]\) means none of the experiment's classes",
        ),
        ({"val_labels": np.array([0, 1, None, 0])}, "val_labels cannot be read .*allow_pickle=False"),
    ],
)
def test_a_wrong_npz_array_is_named(make_experiment, make_npz_site, replaced, message):
    with pytest.raises(UserError, match=rf"images\.npz: .*{message}"):
        found(make_experiment(data=NPZ), make_npz_site(**replaced))


def test_a_damaged_npz_is_named(make_experiment, make_npz_site, tmp_path):
    site = make_npz_site()
    path = tmp_path / "images.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"images\.npz: cannot be read as an \.npz file"):
        found(make_experiment(data=NPZ), site)


def test_damaged_pixels_are_named(make_experiment, make_npz_site, tmp_path):
    site = make_npz_site()
    path = tmp_path / "images.npz"
    images = found(make_experiment(data=NPZ), site)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:-64] if name == "train_images.npy" else data)
    with pytest.raises(UserError, match=re.escape("train_images[3] has 0 of its 64 bytes")):
        list(images.decoded("train", at_size(8)))


def test_a_data_location_that_is_not_set(make_experiment, make_npz_site):
    site = make_npz_site({"npz": None})
    with pytest.raises(UserError, match=r"field 'data.npz' is not set, but data.source 'npz' there needs it"):
        found(make_experiment(), site)
    with pytest.raises(UserError, match=r"field 'data.table' is not set, but data.source 'csv' there needs it"):
        found(make_experiment(), Site())


CHEST = {"source": "site", "task": "multilabel", "classes": ["effusion", "mass", "hernia"]}


def test_several_labels_in_a_table(make_experiment, make_csv_site, tmp_path):
    texts = ["effusion|mass", "No Finding", " No Finding ", "hernia", "mass | effusion", "hernia|mass|effusion"]
    rows = [{"file": f"{i}.png", "label": text, "split": "val" if i == 5 else "train"} for i, text in enumerate(texts)]
    images = found(make_experiment(data=CHEST), make_csv_site(rows, images=False, no_finding="No Finding"))
    assert [item.labels for item in [*images.items("train"), *images.items("val")]] == [
        (0, 1), (), (), (2,), (0, 1), (0, 1, 2),
    ]  # fmt: skip
    rows[1]["label"] = "mass|No Finding"
    with pytest.raises(
        UserError, match=r"1 of 6 rows .*'No Finding' of data.no_finding beside other values \(first: line 3"
    ):
        found(make_experiment(data=CHEST), make_csv_site(rows, images=False, no_finding="No Finding"))
    rows[1]["label"] = "mass|edema"
    with pytest.raises(UserError, match=r"'edema' \(1 .* in line 3\) means none of .*several values would be joined"):
        found(make_experiment(data=CHEST), make_csv_site(rows, images=False, no_finding="No Finding"))


def test_several_labels_in_an_npz(make_experiment, make_npz_site):
    data = {"source": "site", "task": "multilabel", "classes": ["a", "b", "c"]}
    many = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]], np.uint8)
    labels = {f"{split}_labels": many for split in ("train", "val", "test")}
    images = found(make_experiment(data=data), make_npz_site(**labels))
    assert [item.labels for item in images.items("val")] == [(1, 2), (), (0, 1, 2), (0,)]
    for wrong, message in (
        (many + 1, r"val_labels\[0, 1\] is 2"),
        (many[:, :2], r"\(4, 2\); it should be zeros and ones \(N,3\)"),
    ):
        with pytest.raises(UserError, match=message):
            found(make_experiment(data=data), make_npz_site(**labels | {"val_labels": wrong}))


def test_a_quote_that_is_not_closed_does_not_swallow_rows(tmp_path):
    site = written(tmp_path, b'file,label,split,note\n1.png,red,train,"5 mm lesion\n2.png,red,train,none\n')
    with pytest.raises(UserError, match="cannot be read as a CSV table"):
        read_table(site, RED)


def test_a_pipe_is_not_waited_for(make_experiment, make_csv_site, rows, tmp_path):
    site = make_csv_site(rows)
    (tmp_path / "images" / "0.png").unlink()
    os.mkfifo(tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match=r"path of a file inside .* \(first: line 2 '0.png'\)"):
        found(make_experiment(), site)
    (error,) = failures(found(make_experiment(), tolerant(site)), "train")
    assert "image '0.png' cannot be read (is not a file)" in error


def test_an_encrypted_member_is_named(make_experiment, make_csv_site, rows, tmp_path):
    path = tmp_path / "images.zip"
    site = zipped(make_csv_site(rows), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("1.png").header_offset
    directory = content.index(b"PK\x01\x02")
    while content[directory + 46 : directory + 51] != b"1.png":
        directory = content.index(b"PK\x01\x02", directory + 4)
    content[place + 6] |= 1
    content[directory + 8] |= 1
    path.write_bytes(content)
    (error,) = failures(found(make_experiment(), site), "train")
    assert "image '1.png' cannot be read" in error
    assert "encrypted" in error
