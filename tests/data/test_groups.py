"""Groups that `data.group_pattern` finds in paths."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pt_peft.data.groups import grouped
from pt_peft.data.items import Item
from pt_peft.data.problems import stop
from pt_peft.data.sources import listed_items
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import Columns, SiteData

BREAKHIS = r"SOB_[BM]_[A-Z]+-14-(?P<group>[0-9A-Z]+)-"


def items(*files: str, split=None) -> list[Item]:
    return [Item(file, (0,), split, file) for file in files]


def test_the_group_is_what_the_pattern_finds():
    listed = items("b/SOB/SOB_B_A-14-22549AB-40-001.png", "b/SOB/SOB_B_A-14-22549AB-100-001.png")
    assert [item.group for item in grouped(listed, BREAKHIS, Path("f"), stop)] == ["22549AB", "22549AB"]
    (item,) = grouped(items("benign\\P7 \\a.png"), "^[^/]+/(?P<group>[^/]+)/", Path("f"), stop)
    assert (item.file, item.group) == ("benign\\P7 \\a.png", "P7")


@pytest.mark.parametrize("group", ["", "NA", "unknown"])
def test_an_image_without_a_group_is_named(group):
    message = (
        r"f: 1 of 2 images are not taken: data.group_pattern of site.json, '.*', does not find their group \(first: "
    )
    with pytest.raises(UserError, match=message + f"'a/{group}/2.png'" if group else message):
        grouped(items("a/p1/1.png", f"a/{group}/2.png"), "a/(?P<group>[^/]*)/", Path("f"), stop)


def test_a_group_in_two_splits_is_named():
    listed = [*items("train/p1.png", split="train"), *items("test/p1.png", "test/p2.png", split="test")]
    with pytest.raises(UserError, match=r"1 of 3 images .*\(first: 'test/p1.png' of group 'p1' like 'train/p1.png'\)"):
        grouped(listed, "(?P<group>p.)", Path("f"), stop)


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "is no regular expression"), ("p([0-9]+)", "has no group (?P<group>…)")]
)
def test_a_pattern_that_is_none(pattern, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        SiteData(group_pattern=pattern)


def test_a_table_without_groups_may_have_them_in_its_paths(make_experiment, make_csv_site, rows):
    rows = [row | {"patient": "p"} for row in rows]
    site = make_csv_site(rows, group_pattern="^(?P<group>[0-9]+)")
    assert [item.group for item in listed_items(make_experiment(), site)] == [str(index) for index in range(10)]
    for own in ({"columns": Columns(group="patient")}, {"source": "npz"}):
        data = site.data.model_copy(update=own)
        with pytest.raises(UserError, match=r"'data.group_pattern' must be null where the source says the groups"):
            listed_items(make_experiment(), site.model_copy(update={"data": data}))


def test_a_file_that_is_not_named_in_utf_8(make_experiment, make_csv_site, rows, tmp_path):
    site = make_csv_site(rows)
    folder = tmp_path / "images"
    (folder / "red").mkdir()
    (folder / "0.png").rename(folder / "red" / "caf\udce9.png")
    data = site.data.model_copy(update={"source": "image_folder", "images": str(folder / "red" / "..")})
    for other in folder.glob("*.png"):
        other.unlink()
    with pytest.raises(UserError, match=r"file 'red/caf\\udce9.png' is not named in UTF-8; rename it"):
        listed_items(make_experiment(), site.model_copy(update={"data": data}))
