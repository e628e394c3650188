"""Rows as hospitals write them mean what they say; what is left out is counted and named."""

import csv
import json

import pytest

from pt_peft import schema
from pt_peft.data.items import NOT_KNOWN, SPLITS, targets
from pt_peft.data.sources import site_images
from pt_peft.data.table import read_table
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

RED = Data(source="site", classes=("red", "blue"))


class Said(list):
    """A report that collects what it is told: kind, message and level."""

    def __call__(self, kind, message, level="error"):
        self.append((kind, message, level))


@pytest.fixture
def make_site(tmp_path):
    """Writes a table of `rows`, and an empty file for each; keywords are fields of ``data`` in site.json."""

    def make(rows, **data) -> Site:
        (tmp_path / "images").mkdir(exist_ok=True)
        with open(tmp_path / "t.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            (tmp_path / "images" / row["file"]).touch()
        data = {"columns": {"split": None}, **data, "table": "t.csv", "images": "images"}
        (tmp_path / "site.json").write_text(json.dumps({"data": data}))
        return Site.read(tmp_path / "site.json")

    return make


def of_patients(*patients: str) -> list[dict]:
    return [{"file": f"{i}.png", "label": "red", "patient": patient} for i, patient in enumerate(patients)]


def test_blanks_and_unicode_do_not_make_two_of_one(make_site):
    rows = [
        {"file": "0.png", "label": "red ", "patient": "P7", "split": "Training"},
        {"file": "1.png", "label": "red", "patient": "P7 ", "split": " TRAIN"},
        {"file": "2.png", "label": "\u00a0blue", "patient": "e\u0301", "split": "valid"},
        {"file": "3.png", "label": "blue", "patient": "\u00e9", "split": "Validation"},
        {"file": "4.png", "label": "blue", "patient": "x", "split": "Testing"},
    ]
    items = read_table(make_site(rows, columns={"group": "patient"}), RED)
    assert [item.group for item in items] == ["P7", "P7", "\u00e9", "\u00e9", "x"]
    numbers = make_site(of_patients("7", "7.0", "007"), columns={"group": "patient", "split": None})
    assert [item.group for item in read_table(numbers, RED)] == ["7", "7", "007"]
    assert [item.split for item in items] == ["train", "train", "val", "val", "test"]
    assert [item.labels for item in items] == [(0,), (0,), (1,), (1,), (1,)]


def test_integers_that_pandas_wrote_as_floats(make_site):
    rows = [{"file": f"{i}.png", "label": label} for i, label in enumerate(["0.0", "1,0", "1"])]
    items = read_table(make_site(rows), Data(source="site", classes=("0", "1")))
    assert [(item.labels, item.values) for item in items] == [((0,), ("0",)), ((1,), ("1",)), ((1,), ("1",))]


@pytest.mark.parametrize("unknown", ["", "NA", "n/a", " nan ", "None", "NULL", "unknown", "-", "?"])
def test_many_rows_without_a_group_are_refused(make_site, unknown):
    site = make_site(of_patients(*(unknown if i % 2 else f"p{i // 4}" for i in range(40))), columns={
        "group": "patient", "split": None
    })  # fmt: skip
    with pytest.raises(
        UserError, match=r"in 20 of 40 rows \(first: line 3 .*\) column 'patient' does not say the group"
    ):
        read_table(site, RED)


def test_few_rows_without_a_group_are_groups_of_their_own_and_said(make_site):
    columns = {"group": "patient", "split": None}
    site = make_site(of_patients("NA", "-", *(f"p{i // 2}" for i in range(38))), columns=columns)
    said = Said()
    items = read_table(site, RED, said)
    assert [item.group for item in items[:4]] == ["0.png", "1.png", "p0", "p0"]
    ((kind, message, level),) = said
    assert (kind, level) == ("no group", "warning")
    assert message.endswith(
        "t.csv: in 2 of 40 rows (first: line 2 'NA', line 3 '-') column 'patient' does not say the group; each of "
        "these images is a group of its own."
    )
    site = make_site(of_patients("NA", "p1", "p2"), columns={"group": "patient", "split": None})
    said.clear()
    assert len(read_table(site, RED, said)) == 3
    assert [(kind, level) for kind, _, level in said] == [
        ("image without a row", "warning"),
        ("no group", "warning"),  # one row cannot be in two splits
    ]


def test_a_group_that_is_most_of_the_images_is_said(make_site):
    said = Said()
    rows = of_patients(*["ANONYMOUS"] * 15, *(f"p{i}" for i in range(10)))
    read_table(make_site(rows, columns={"group": "patient", "split": None}), RED, said)
    assert [(kind, level) for kind, _, level in said] == [("large group", "warning")]
    assert "15 of 25 rows have the group 'ANONYMOUS' in column 'patient'" in said[0][1]


def test_each_cause_is_one_sentence(make_site, tmp_path):
    rows = [{"file": f"{i}.png", "label": ("", "red")[i % 2], "split": ("train", "dev")[i % 3 == 0]} for i in range(30)]
    site = make_site(rows, columns={})
    for name in ("7.png", "11.png", "13.png", "17.png"):
        (tmp_path / "images" / name).unlink()
    said = Said()
    items = read_table(site, RED, said)
    assert [item.file for item in items] == [f"{i}.png" for i in (1, 5, 19, 23, 25, 29)]
    assert [message.partition("t.csv: ")[2] for _, message, _ in said] == [
        f"4 of 30 rows are not taken: column 'file' should be the path of a file inside {tmp_path / 'images'}, such as "
        "'0.png' (first: line 9 '7.png', line 13 '11.png', line 15 '13.png', …).",
        "15 of 30 rows are not taken: column 'label' is empty (first: line 2, line 4, line 6, …).",
        "5 of 30 rows are not taken: column 'split' should be train, val or test (first: line 5 'dev', line 11 'dev', "
        "line 17 'dev', …).",
    ]


def test_files_that_are_named_in_another_way_are_said(make_site, tmp_path):
    site = make_site([{"file": f"{i}.png", "label": "red"} for i in range(3)])
    table = tmp_path / "t.csv"
    table.write_text(table.read_text().replace("\n", "\n/data/").removesuffix("/data/"))
    said = Said()
    assert [item.file for item in read_table(site, RED, said)] == ["0.png", "1.png", "2.png"]
    ((kind, message, level),) = said
    assert (kind, level) == ("names of files", "warning")
    assert message.endswith("t.csv: the names in column 'file' are looked up without '/data/'.")
    (tmp_path / "images" / "x").mkdir()
    for name in ("x/a.png", "a.png"):
        (tmp_path / "images" / name).touch()
    table.write_text("file,label\nA.png,red\n")
    with pytest.raises(
        UserError, match=r"several files in .*images end so; .* should have the path .*'A.png': '.*a.png'"
    ):
        read_table(site, RED)


def test_values_that_are_left_out_are_counted(make_site):
    rows = [{"file": f"{i}.png", "label": label} for i, label in enumerate(["red", "UNK", "unsure ", "UNK", "blue"])]
    said = Said()
    items = read_table(make_site(rows, leave_out=["UNK", "unsure"]), RED, said)
    assert [item.file for item in items] == ["0.png", "4.png"]
    ((kind, message, level),) = said
    assert (kind, level) == ("left out", "warning")
    assert message.endswith("t.csv: data.leave_out of site.json leaves out 'UNK' in 2, 'unsure' in 1 of 5 rows.")
    # Of several labels only these are left out.
    rows = [{"file": f"{i}.png", "label": label} for i, label in enumerate(["red|UNK", "UNK", "blue|red"])]
    several = Data(source="site", task="multilabel", classes=("red", "blue"))
    items = read_table(make_site(rows, leave_out=["UNK"]), several, said)
    assert [item.labels for item in items] == [(0,), (), (0, 1)]


def test_rows_of_sites_that_take_no_part_are_counted_and_named(make_experiment, make_site):
    experiment = make_experiment(partition={"kind": "natural", "min_images": 0})

    def count(names, *sites, said) -> int:
        rows = [
            {"file": f"{i}.png", "label": "red", "split": "train", "place": sites[i % len(sites)]} for i in range(12)
        ]
        site = make_site(rows, columns={"site": "place"}, pooled=True)
        found = site_images(experiment, site, names[0], names, said)
        return sum(len(found.items(split)) for split in SPLITS)

    said = Said()
    assert count(["site-1", "site-2"], "site-1", "site-2", "site-3", "", said=said) == 3
    assert said == [
        (
            "other sites",
            "partition.kind 'natural': 6 of 12 images are not taken: they come from none of the sites site-1, site-2 "
            "('site-3' 3, not named 3).",
            "warning",
        )
    ]
    said.clear()
    assert count(["site-1", "st-marys"], "site-1", "Site-1", "site 1 ", "St. Mary's", said=said) == 3
    assert [(kind, level) for kind, _, level in said] == [("name of a site", "error")] * 3
    assert "3 of 12 images come from 'Site-1', which differs from the site 'site-1'; write both alike." in said[0][1]
    said.clear()
    assert count(["site-1", "site-2"], "site-1 ", "site-2", said=said) == 6
    assert not said


CHEXPERT = Data(source="site", task="multilabel", classes=("cardiomegaly", "edema", "mass"))
MARKS = [("1.0", "", "0"), ("-1.0", "1", ""), ("", "-1", "-1.0"), ("-1", "-1", "-1"), ("", "", "")]
ROWS = [
    {"file": f"{i}.png", "Cardiomegaly": one, "Edema": two, "mass": three, "split": "train"}
    for i, (one, two, three) in enumerate(MARKS)
]
LISTED = {"cardiomegaly": ["Cardiomegaly"], "edema": ["Edema"], "mass": ["mass"]}
FINDINGS = {"columns": {"label": None}, "classes": LISTED}


@pytest.mark.parametrize(
    ("uncertain", "expected"),
    [
        ("zeros", [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ("ones", [[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]),
        ("ignore", [[1, 0, 0], [255, 1, 0], [0, 255, 255], [255, 255, 255], [0, 0, 0]]),
    ],
)
def test_a_column_for_each_finding(make_site, uncertain, expected):
    items = read_table(make_site(ROWS, **FINDINGS, uncertain=uncertain), CHEXPERT)
    assert NOT_KNOWN == 255
    assert targets(items, 3, multilabel=True).tolist() == expected
    assert items[0].values == ("Cardiomegaly",)


def test_a_class_of_two_columns(make_site):
    own = {**FINDINGS, "classes": LISTED | {"cardiomegaly": ["Cardiomegaly", "Edema"], "edema": []}}
    items = read_table(make_site(ROWS, **own, uncertain="ignore"), CHEXPERT)
    assert targets(items, 3, multilabel=True)[:, 0].tolist() == [1, 1, 255, 255, 0]


@pytest.mark.parametrize(
    ("own", "changed", "message"),
    [
        (
            {},
            {},
            r"1 of 5 rows .* column 'Cardiomegaly' is -1, uncertain; data.uncertain of site.json says what becomes",
        ),
        ({"uncertain": "ones"}, {"Edema": "2"}, r"column 'Edema' should be 1, 0, -1 or empty \(first: line 2 '2'\)"),
        ({"uncertain": "ones"}, {"Edema": "NA"}, r"column 'Edema' should be 1, 0, -1 or empty \(first: line 2 'NA'\)"),
        (
            {"uncertain": "ones", "classes": LISTED | {"edema": ["oedema"]}},
            {},
            r"has no column 'oedema' \(of the class 'edema'\); its",
        ),
    ],
)
def test_findings_that_are_none(make_site, own, changed, message):
    rows = [ROWS[0] | changed, *ROWS[1:2], *({**row, "Cardiomegaly": "", "Edema": "", "mass": ""} for row in ROWS[2:])]
    with pytest.raises(UserError, match=message):
        read_table(make_site(rows, **FINDINGS | own), CHEXPERT)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"columns": {"label": None}, "no_finding": "none"}, "'no_finding' is a value of the label column, but"),
        ({"uncertain": "ones"}, "'uncertain' is about tables with a column for each finding, and needs"),
    ],
)
def test_fields_of_two_layouts(own, message):
    with pytest.raises(UserError, match=message):
        schema.parse(Site, {"data": own}, "site.json")


def test_one_hot_columns_of_single_labels(make_site):
    rows = [{"file": f"{i}.png", "red": a, "blue": b, "UNK": c} for i, (a, b, c) in enumerate(["100", "010", "001"])]
    said = Said()
    classes = {"red": ["red"], "blue": ["blue"]}
    own = {"columns": {"label": None, "split": None}, "leave_out": ["UNK"], "classes": classes}
    assert [item.labels for item in read_table(make_site(rows, **own), RED, said)] == [(0,), (1,)]
    assert [(kind, level) for kind, _, level in said] == [("left out", "warning")]
    for wrong in ("110", "000"):
        bad = [*rows, {"file": "3.png", "red": wrong[0], "blue": wrong[1], "UNK": wrong[2]}]
        with pytest.raises(UserError, match=r"1 of 4 rows .* not exactly one column of a class is 1 \(first: line 5"):
            read_table(make_site(bad, **own), RED)
    with pytest.raises(UserError, match=r"column 'red' should be 1, 0 or empty \(first: line 2 '-1'\)"):
        read_table(make_site([rows[0] | {"red": "-1"}], **own), RED)


def test_uncertain_images_train_but_do_not_evaluate(make_experiment, make_site):
    rows = [row | {"split": split, "file": f"{split}{row['file']}"} for split in SPLITS for row in ROWS]
    said = Said()
    experiment = make_experiment(data=CHEXPERT.model_dump(mode="json"))
    images = site_images(experiment, make_site(rows, **FINDINGS, uncertain="ignore"), "a", ["a"], said)
    assert [len(images.items(split)) for split in SPLITS] == [5, 2, 2]
    assert [(kind, level) for kind, _, level in said] == [("uncertain label", "warning")] * 2
    assert said[0][1].endswith(
        "t.csv: data.uncertain of site.json is 'ignore' for -1 of 'Cardiomegaly' in 6, 'Edema' in 6, "
        "'mass' in 6 of 15 rows."
    )
    assert said[1][1] == (
        "site 'a': 6 of 10 validation and test images are not taken: a label is uncertain, and metrics need all labels "
        "(first: 'val1.png', 'val2.png', 'val3.png', …)."
    )
