"""``data.frames`` of `site.json`: files of several frames as images."""

import logging
from typing import Any

import numpy as np
import pytest
from decoding import good
from PIL import Image
from pydantic import ValidationError

from dicom_files import made
from helpers import at_size
from pt_peft.data.frames import located
from pt_peft.data.sources import site_images
from pt_peft.experiment.own_images import SiteData


def dicom(patient: str | None, count: int) -> bytes:
    frames = np.stack([np.full((20, 20), 40 * frame, np.uint8) for frame in range(count)])
    more: dict[str, Any] = {} if patient is None else {"PatientID": patient}
    return made(frames, "MONOCHROME2", 8, NumberOfFrames=count, WindowCenter=128, WindowWidth=256, **more)


@pytest.fixture
def files(tmp_path):
    """Two DICOM files of patient A and one of nobody, a stack of two pages and a file that is damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in {"a1": dicom("A", 3), "a2": dicom(" A", 1), "n": dicom(None, 2), "x.png": b"x"}.items():
        (folder / name).write_bytes(content)
    pages = [Image.new("L", (20, 20), value) for value in (100, 200)]
    pages[0].save(folder / "s.tif", save_all=True, append_images=pages[1:])


@pytest.fixture
def make(files, make_experiment, make_csv_site):
    def made_images(frames, **columns):
        rows = [
            {"file": name, "label": ("red", "blue")[index % 2], "split": split, "patient": patient}
            for index, (name, split, patient) in enumerate(
                [
                    ("a1", "train", "p"),
                    ("a2", "train", "q"),
                    ("n", "train", "r"),
                    ("s.tif", "val", "s"),
                    ("x.png", "test", "t"),
                ]
            )
        ]
        site = make_csv_site(rows, images=False, frames=frames, columns=columns)
        return site_images(make_experiment(), site, "a", ["a", "b"])

    return made_images


def test_each_frame_is_an_image(make):
    images = make("all")
    assert [item.file for item in images.items("train")] == ["a1#0", "a1#1", "a1#2", "a2#0", "n#0", "n#1"]
    assert [item.labels for item in images.items("train")] == [(0,)] * 3 + [(1,)] + [(0,)] * 2
    assert [image[0, 8, 8] for image in good(images.decoded("train", at_size(16)))] == [0, 40, 80, 0, 0, 40]
    assert [image[0, 8, 8] for image in good(images.decoded("val", at_size(16)))] == [100, 200]
    (error,) = images.decoded("test", at_size(16))
    assert "image 'x.png#0' cannot be decoded" in str(error)


def test_the_frames_of_a_file_are_a_group_and_the_files_of_a_patient(make):
    items = [item for split in ("train", "val", "test") for item in make("all").items(split)]
    assert [item.group for item in items] == ["DICOM patient A"] * 4 + ["n"] * 2 + ["s.tif"] * 2 + ["x.png"]
    known = [item for split in ("train", "val", "test") for item in make("all", group="patient").items(split)]
    assert [item.group for item in known] == ["p"] * 3 + ["q"] + ["r"] * 2 + ["s"] * 2 + ["t"]


def test_one_frame_of_each_file(make):
    images = make(1)
    assert [item.file for item in images.items("train")] == ["a1", "a2", "n"]
    first, none, last = images.decoded("train", at_size(16))
    assert first[0, 8, 8] == last[0, 8, 8] == 40
    assert "image 'a2' cannot be decoded (has 1 frame(s) or page(s), counted from 0; there is no 1" in str(none)


def test_several_frames_are_refused_by_default(make):
    assert [str(error).split("(")[1][:23] for error in make(None).decoded("val", at_size(16))] == [
        "has 2 frames or pages; "
    ]


def test_the_frames_are_part_of_what_the_cache_is_keyed_by(make):
    keys = [make(frames).key() for frames in (None, 0, 1, "all")]
    assert len({str(key) for key in keys}) == 4


def test_one_group_for_all_files_is_said(make_experiment, make_csv_site, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / name).write_bytes(dicom("ANON", 2))
    site = make_csv_site(
        [{"file": name, "label": "red", "split": "train"} for name in "ab"], images=False, frames="all"
    )
    with caplog.at_level(logging.WARNING):
        site_images(make_experiment(), site, "a", ["a", "b"])
    assert "all 2 files are of one group (DICOM patient ANON), which stays in one split" in caplog.text


def test_names_of_frames():
    assert located("a#1/b#c#12", "all") == ("a#1/b#c", 12)
    assert located("a#1", None) == ("a#1", None)
    assert located("a#1", 4) == ("a#1", 4)


@pytest.mark.parametrize("frames", [-1, 1.5, "first", True])
def test_other_values_are_refused(frames):
    with pytest.raises(ValidationError):
        SiteData(frames=frames)
