"""Every file is listed as an image, or counted and named."""

import io
import os
import stat
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from pt_peft.data import listing
from pt_peft.data.archive import open_archive
from pt_peft.data.file_kinds import is_image, named_as_image
from pt_peft.data.listing import listed_files, plain_name
from pt_peft.errors import UserError


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, kind)
    return stream.getvalue()


def dicom(**attributes) -> bytes:
    """A DICOM file without pixels unless `attributes` have them."""
    data, stream = pydicom.Dataset(), io.BytesIO()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName = "A"
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


PNG, DICOM = picture("PNG"), dicom(Rows=8, Columns=8, PixelData=bytes(64), BitsAllocated=8)


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def warned(path: Path) -> tuple[list[str], list[str]]:
    """The images in `path`, and the warnings."""
    warnings: list[str] = []
    files = listed_files(path, lambda kind, message, level="error": warnings.append(f"{level}: {message}"))
    return files, [one.replace(str(path), "PATH") for one in warnings]


@pytest.mark.parametrize(
    "content",
    [*map(picture, ("PNG", "JPEG", "GIF", "PPM", "JPEG2000", "TIFF", "BMP", "WEBP", "TGA")), DICOM],
    ids=["PNG", "JPEG", "GIF", "PPM", "JPEG2000", "TIFF", "BMP", "WEBP", "TGA", "DICOM"],
)
def test_an_image_is_known_by_its_content(content):
    assert is_image(io.BytesIO(content))


@pytest.mark.parametrize(
    "content",
    [b"BMI,age", b"P1,nv", b"#define X 1", b"\x89PNG", b"%!PS-Adobe", bytes(300), b"\x89HDF\r\n\x1a\n", dicom()],
)
def test_no_image_is_taken_for_one(content):
    """Texts that begin like images, formats that nobody decodes, DICOM without pixels such as reports."""
    assert not is_image(io.BytesIO(content))


def test_a_name_settles_it_without_a_look(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "is_image", None)
    names = ["a.PNG", "b.jfif", "c.jpe", "d.dcm", "e.HEIC", "f.jxl"]
    assert all(map(named_as_image, names))
    assert warned(tree(tmp_path, dict.fromkeys(names, b"damaged"))) == (names, [])


CLUTTER = {"notes.txt": b"text", "a/list.csv": b"P1,nv", "DICOMDIR": dicom(), "a/void": b"", "a/Thumbs.db": b"x"}
CLUTTER |= {"__MACOSX/a/._1": b"x", "__MACOSX/a/._2.png": PNG, ".DS_Store": b"x", "a/._1.png": PNG}
IMAGES = {"a/IM0001": DICOM, "a/1.2.840.7": DICOM, "a/1.png": PNG, "b.bak": picture("JPEG"), "b.ima": DICOM}
SENTENCES = [
    "warning: PATH: 4 of 13 files are not taken: they are hidden, or an operating system's own (first: '.DS_Store', "
    "'__MACOSX', 'a/._1.png', …).",
    "warning: PATH: 3 of 13 files are not taken: they are no images by name or content (first: 'DICOMDIR', "
    "'a/list.csv', 'notes.txt').",
    "warning: PATH: 1 of 13 files are not taken: they are empty (first: 'a/void').",
]


def test_what_is_not_taken_is_named_by_cause(tmp_path):
    expected = (sorted(IMAGES), SENTENCES)
    assert warned(tree(tmp_path / "f", CLUTTER | IMAGES)) == expected
    assert warned(zipped(tmp_path / "f.zip", CLUTTER | IMAGES)) == expected


def test_an_archive_in_a_folder_or_archive_is_named(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"a.png": PNG}).read_bytes()
    files = {"train/Inner.ZIP": inner, "b.tar.gz": b"\x1f\x8b", "notes.gz": b"\x1f\x8b", "c.png": PNG}
    expected = [
        "warning: PATH: 2 of 4 files are not taken: they are archives, which would have to be unpacked (first: "
        "'b.tar.gz', 'train/Inner.ZIP').",
        "warning: PATH: 1 of 4 files are not taken: they are no images by name or content (first: 'notes.gz').",
    ]
    assert warned(tree(tmp_path / "f", files)) == (["c.png"], expected)
    assert warned(zipped(tmp_path / "outer.zip", files)) == (["c.png"], expected)


def test_a_broken_link_is_an_error(tmp_path):
    folder = tree(tmp_path / "f", {"a.png": PNG, "real/b.png": PNG})
    (folder / "c.png").symlink_to("/not/mounted/c.png")
    (folder / "self").symlink_to("self")
    message = r"2 of 4 files are not taken: they are links to what is not there or cannot be reached \(first: 'c.png', "
    with pytest.raises(UserError, match=message):
        listed_files(folder)
    with open_archive(folder) as open_image, pytest.raises(OSError, match=r"is a link to '/not/mounted/c.png', which"):
        open_image("c.png")
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../elsewhere/a.png")
    with pytest.raises(UserError, match=r"1 of 1 files are not taken: they are links"):
        listed_files(tmp_path / "l.zip")


def test_links_are_followed_and_each_folder_is_listed_once(tmp_path):
    tree(tmp_path / "outside", {"x.png": PNG})
    folder = tree(tmp_path / "f", {"z/a.png": PNG})
    (folder / "a_link").symlink_to(folder / "z")  # sorts before the folder itself
    (folder / "z" / "loop").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "b.png").symlink_to(tmp_path / "outside" / "x.png")
    images, (warning,) = warned(folder)
    assert images == ["b.png", "out/x.png", "z/a.png"]
    assert "2 of 5 files are not taken: they lead to folders that are listed already (first: 'a_link/', " in warning


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert warned(tmp_path) == (
        [],
        ["warning: PATH: 1 of 1 files are not taken: they are neither files nor folders (first: 'pipe.png')."],
    )


def test_what_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    tree(tmp_path / "f", {"a/IM1": DICOM, "a/IM2": DICOM, "a/1.png": PNG})

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(listing, "is_image", denied)
        with pytest.raises(
            UserError, match=r"2 of 3 .* cannot be read \(Permission denied\) \(first: 'a/IM1', 'a/IM2'\)"
        ):
            listed_files(tmp_path / "f")
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"f: cannot be read \(Permission denied\)"):
        listed_files(tmp_path / "f")


def test_names_of_other_systems_are_compared_as_one(tmp_path):
    nfd = unicodedata.normalize("NFD", "nævus/é.png")
    as_macos_zips = "n\u251c\u00aavus/e\u2560\u00fc.png"
    assert as_macos_zips.encode("cp437") == nfd.encode()
    assert {plain_name(name) for name in (nfd, as_macos_zips, "./nævus\\ é.png ")} == {"nævus/é.png"}
    path = zipped(tmp_path / "z.zip", {"train\\a\\1.png": PNG, "./b/2.png": PNG, "train\\a\\": b""})
    images = listed_files(path)
    assert images == ["./b/2.png", "train\\a\\1.png"]
    with open_archive(path) as open_image:
        assert all(open_image(name).read() == PNG for name in images)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a\\1.png", "a/1.png"), ("é.png", "e\u0301.png"), ("a.png", "a.png")])
def test_two_files_of_one_name_are_an_error(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in names:
            archive.writestr(name, PNG)
    with pytest.raises(UserError, match=r"1 of 2 files are not taken: names must differ in more than .* beside '"):
        listed_files(tmp_path / "z.zip")


def test_a_name_that_cannot_be_printed(tmp_path):
    (tmp_path / "caf\udce9\n.txt").write_bytes(b"text")
    assert "first: 'caf\\udce9\\n.txt')" in warned(tmp_path)[1][0]
