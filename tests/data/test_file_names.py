"""A table's names of files find one file each, or none."""

import zipfile

import pytest

from pt_peft.data.file_names import look_up
from pt_peft.data.listing import listed_files


def tree(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.mark.parametrize(
    ("files", "names", "meant"),
    [
        pytest.param(
            ["a.png", "x/a.png"], ["a.png", "x/a.png"], ["a.png", "x/a.png"], id="the path itself comes first"
        ),
        pytest.param(["x/a.png", "y/z/b.png"], ["a.png", "z/b.png"], ["x/a.png", "y/z/b.png"], id="ends of paths"),
        pytest.param(["x/a.png"], ["x\\a.png"], ["x/a.png"], id="backslashes"),
        pytest.param(["a.png"], ["./a.png"], ["a.png"], id="dots"),
        pytest.param(["a.png", "x/b.jpg"], ["a", "b"], ["a.png", "x/b.jpg"], id="ids"),
        pytest.param(["a.png", "a.json"], ["a"], ["a.png"], id="what lies beside an image is no image"),
        pytest.param(["a.png", "a.png.json"], ["a.png"], ["a.png"], id="a suffix more"),
        pytest.param(["a.png", "B.PNG"], ["A.PNG", "b.png"], ["a.png", "B.PNG"], id="upper and lower case"),
        pytest.param(["x/a.png", "x/A.png"], ["a.png"], ["x/a.png"], id="the same case comes first"),
        pytest.param(["e\u0301.png"], ["\u00e9.png"], ["e\u0301.png"], id="decomposed letters on the disk"),
        pytest.param(["1.2.840.dcm"], ["1.2.840", "1.2"], ["1.2.840.dcm", None], id="DICOM identifiers"),
        pytest.param(["x/a.png", "y/a.png"], ["a.png"], [["x/a.png", "y/a.png"]], id="two ends"),
        pytest.param(["a.png", "a.jpg"], ["a"], [["a.png", "a.jpg"]], id="two images of an id"),
        pytest.param(["p2/v.png"], ["p1/v.png", "p2/v.png"], [None, "p2/v.png"], id="another folder is another file"),
        pytest.param(["a.png"], ["a.png", "b.png"], ["a.png", None], id="missing"),
        pytest.param(["a.png", "b.png"], ["a.png", "b.jpg"], ["a.png", None], id="another suffix is another file"),
    ],
)
def test_names(tmp_path, files, names, meant):
    lookup = look_up(names, listed_files(tree(tmp_path, *files)))
    expected = [{one} if isinstance(one, str) else set(one or ()) for one in meant]
    assert [set(found) for found in lookup.files] == expected
    assert not lookup.how


@pytest.mark.parametrize(
    ("files", "names", "meant", "how"),
    [
        (["a.png", "b.png"], ["/data/im/a.png", "/data/im/b.png"], ["a.png", "b.png"], "without '/data/im/'"),
        (["im/a.png", "im/b.png"], ["/d/im/a.png", "/d/im/b.png"], ["im/a.png", "im/b.png"], "without '/d/'"),
        (["a.png"], ["C:\\scans\\a.png"], ["a.png"], "without 'C:/scans/'"),
        (["a.png"], ["../images/a.png"], ["a.png"], "without '../images/'"),
        (["p1/v.jpg", "p2/v.jpg"], ["C-small/train/p1/v.jpg", "C-small/train/p2/v.jpg"], ["p1/v.jpg", "p2/v.jpg"],
         "without 'C-small/train/'"),
        (["a.png", "b.png"], ["a.dcm", "b.dcm"], ["a.png", "b.png"], "without their suffixes"),
        (["a.png"], ["/data/a.dcm"], ["a.png"], "without '/data/' and without their suffixes"),
        # Folders are left off only if all names have them, and a name without them is the whole path.
        (["a.png"], ["x/a.png", "y/a.png"], [None, None], ""),
        (["train/1.png"], ["test/1.png"], [None], ""),
    ],
)  # fmt: skip
def test_names_that_all_have_to_be_changed(tmp_path, files, names, meant, how):
    lookup = look_up(names, listed_files(tree(tmp_path, *files)))
    assert [list(found) for found in lookup.files] == [[one] if one else [] for one in meant]
    assert lookup.how == how


def test_a_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("top/a.png", b"")
        archive.writestr("top\\b.png", b"")
    assert [list(found) for found in look_up(["a.png", "top/b.png"], listed_files(tmp_path / "i.zip")).files] == [
        ["top/a.png"],
        ["top\\b.png"],
    ]


def test_many_names_and_files_of_one_name_take_no_time(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for patient in range(3000):
            archive.writestr(f"p{patient}/view1.jpg", b"")
    names = [f"CheXpert/train/p{patient}/view1.jpg" for patient in range(3000)]
    assert all(len(found) == 1 for found in look_up(names, listed_files(tmp_path / "i.zip")).files)
