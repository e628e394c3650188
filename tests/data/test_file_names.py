"""A table's names of files find one file each, or none."""

import pytest

from pt_peft.data.file_names import look_up


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
def test_names(files, names, meant):
    lookup = look_up(names, files)
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
def test_names_that_all_have_to_be_changed(files, names, meant, how):
    lookup = look_up(names, files)
    assert [list(found) for found in lookup.files] == [[one] if one else [] for one in meant]
    assert lookup.how == how


def test_backslashes_on_both_sides():
    assert [list(found) for found in look_up(["b.png", "top\\b.png"], ["top\\b.png"]).files] == [["top\\b.png"]] * 2


def test_many_names_and_files_of_one_name_take_no_time():
    files = [f"p{patient}/view1.jpg" for patient in range(20_000)]
    lookup = look_up([f"CheXpert/train/{file}" for file in files], files)
    assert [file for found in lookup.files for file in found] == files
