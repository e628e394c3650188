"""A site says which of its values mean which class, whatever its source is; a job cannot say otherwise."""

import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pt_peft import schema
from pt_peft.data.items import SPLITS
from pt_peft.data.label_values import class_of_value
from pt_peft.data.sources import listed_items, site_images
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

DATA = Data(source="site", classes=("naevus", "melanoma", "other"))
SECTION = DATA.model_dump(mode="json")


@pytest.mark.parametrize(
    ("own", "meaning"),
    [
        ({}, {"naevus": 0, "melanoma": 1, "other": 2}),
        ({"classes": {"melanoma": ["mel", "MM"]}}, {"naevus": 0, "mel": 1, "MM": 1, "other": 2}),
        ({"classes": {"melanoma": ["mel", "other"], "other": []}}, {"naevus": 0, "mel": 1, "other": 1}),
        ({"source": "npz"}, {"0": 0, "1": 1, "2": 2}),
        ({"source": "npz", "classes": {"naevus": ["1"], "melanoma": ["0"]}}, {"1": 0, "0": 1, "2": 2}),
        ({"classes": {"melanoma": [" me\u0301l "]}}, {"naevus": 0, "m\u00e9l": 1, "other": 2}),
        ({"leave_out": ["other"]}, {"naevus": 0, "melanoma": 1}),
        ({"no_finding": "other"}, {"naevus": 0, "melanoma": 1, "other": 2}),  # a class unless the task is multilabel
    ],
)
def test_what_values_mean(own, meaning):
    assert class_of_value(DATA, schema.parse(SiteData, own, "site.json")) == meaning


@pytest.mark.parametrize(
    ("own", "task", "message"),
    [
        (
            {"classes": {"hiv": ("positive",)}},
            "multiclass",
            "field 'data.classes' has the class 'hiv', which the experiment does not have; its classes are naevus, mel",
        ),
        (
            {"classes": {"naevus": ("x", "y"), "melanoma": ("y",)}},
            "multiclass",
            r"the value 'y' means both 'naevus' and 'melanoma' .*; one class for each value would be right",
        ),
        (
            {"classes": {"naevus": ("melanoma",)}},
            "multiclass",
            r"means both 'naevus' and 'melanoma' \(a class that is not listed there is meant by 'melanoma'\)",
        ),
        (
            {"classes": {"naevus": ("nv",)}, "leave_out": ("nv",)},
            "multiclass",
            "'data.leave_out' has 'nv', which means the class 'naevus' by 'data.classes'; one of the two",
        ),
        ({"no_finding": "other"}, "multilabel", "'data.no_finding' is 'other', which also means the class 'other'"),
    ],
)
def test_a_mapping_that_is_none(own, task, message):
    with pytest.raises(UserError, match=rf"^site\.json: .*{message}"):
        class_of_value(DATA.model_copy(update={"task": task}), SiteData.model_validate(own))


def labels(experiment, site) -> list[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    return [(item.file, item.labels, item.values) for item in listed_items(experiment, site)]


def test_cells_of_a_table(make_experiment, make_csv_site):
    rows = [{"file": f"{i}.png", "label": value, "split": "train"} for i, value in enumerate(["nv", "MM", "mel"])]
    classes = {"naevus": ["nv"], "melanoma": ["mel", "MM"]}
    site = make_csv_site(rows, images=False, classes=classes)
    assert labels(make_experiment(data=SECTION), site) == [
        ("0.png", (0,), ("nv",)),
        ("1.png", (1,), ("MM",)),
        ("2.png", (1,), ("mel",)),
    ]


def test_cells_of_several_values(make_experiment, make_csv_site):
    cells = ["nv|mel", "MM|mel", " none", "none"]
    rows = [{"file": f"{i}.png", "label": cell, "split": "train"} for i, cell in enumerate(cells)]
    classes = {"naevus": ["nv"], "melanoma": ["mel", "MM"]}
    site = make_csv_site(rows, images=False, classes=classes, no_finding="none")
    experiment = make_experiment(data={**SECTION, "task": "multilabel"})
    assert [one[1] for one in labels(experiment, site)] == [(0, 1), (1,), (), ()]
    rows[2]["label"] = ""
    with pytest.raises(UserError, match=r"column 'label' is empty; data.no_finding .* 'none' stands for .*: line 4\)"):
        labels(experiment, make_csv_site(rows, images=False, classes=classes, no_finding="none"))
    rows[3]["label"] = ""
    assert [one[1] for one in labels(experiment, make_csv_site(rows, images=False, classes=classes))][2:] == [(), ()]


def test_folders_and_published_labels(make_experiment, tmp_path):
    for name in ("nv/a.png", "naevi/b.png", "mel/c.png", "other/d.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / "f" / name)
    classes = {"naevus": ("nv", "naevi"), "melanoma": ("mel",)}
    own = SiteData(source="image_folder", images=str(tmp_path / "f"), classes=classes)
    assert [(one[0], one[1]) for one in labels(make_experiment(data=SECTION), Site(data=own))] == [
        ("mel/c.png", (1,)),
        ("naevi/b.png", (0,)),
        ("nv/a.png", (0,)),
        ("other/d.png", (2,)),
    ]
    (tmp_path / "f" / "HAM10000_metadata").write_text("lesion_id,image_id,dx\nL,a,nv\nL,c,mel\n")
    own = own.model_copy(update={"source": "ham10000"})
    found = labels(make_experiment(data=SECTION), Site(data=own))
    assert [one[1:] for one in found] == [((0,), ("nv",)), ((1,), ("mel",))]


def test_numbers_and_columns_of_an_npz(make_experiment, make_npz_site):
    classes = {"naevus": ["1"], "melanoma": ["0"]}
    experiment = make_experiment(data={**SECTION, "classes": ["naevus", "melanoma"]})
    found = labels(experiment, make_npz_site({"classes": classes}))
    assert [one[1] for one in found[:4]] == [(1,), (0,), (1,), (0,)]
    many = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]], np.uint8)
    arrays = {f"{split}_labels": many for split in ("train", "val", "test")}
    experiment = make_experiment(data={**SECTION, "classes": ["naevus", "melanoma"], "task": "multilabel"})
    found = labels(experiment, make_npz_site({"classes": {"naevus": ["1"], "melanoma": ["0", "2"]}}, **arrays))
    assert [one[1] for one in found[:4]] == [(1,), (0,), (), (1,)]


ROWS = [
    {"file": f"{i}.png", "label": value, "hiv": hiv, "split": "train", "hospital": place}
    for i, (value, hiv, place) in enumerate(
        [("naevus", "negative", "a"), ("melanoma", "positive", "b"), ("other", "negative", "a")] * 4
    )
]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        # An old job, which names a column of its own.
        (
            {"data": {"source": "csv", "classes": ["negative", "positive"], "columns": {"label": "hiv"}}},
            "'site' or 'lesions' would be right; what a site's images are and mean is said in its site.json",
        ),
        (
            {"data": {"source": "site", "classes": ["negative", "positive"], "columns": {"label": "hiv"}}},
            "field 'data.columns' stands in each site's site.json now",
        ),
        (
            {"data": {"source": "site", "task": "multilabel", "classes": ["negative", "x"], "no_finding": "positive"}},
            "field 'data.no_finding' stands in each site's site.json now",
        ),
        # Another source: names of folders, or of files that lie beside.
        ({"data": {"source": "image_folder", "classes": ["ward-1", "ward-2"]}}, "'site' or 'lesions' would be right"),
        ({"data": {"source": "ham10000", "classes": ["nv", "mel"]}}, "'site' or 'lesions' would be right"),
        # Classes named after values of another column.
        (
            {"data": {"source": "site", "classes": ["negative", "positive"]}},
            r"column 'label': 'naevus' \(4 image\(s\), .*\) means none of the experiment's classes",
        ),
        (
            {"data": {"source": "site", "task": "multilabel", "classes": ["negative", "positive"]}},
            r"'naevus' \(4 image\(s\), .*\) means none of the experiment's classes",
        ),
        # A choice of rows: by the column of sites, by class, at random among made-up sites.
        ({"partition": {"kind": "natural"}}, "'data.pooled' must be true with partition.kind 'natural'"),
        ({"partition": {"kind": "shards", "classes_per_site": 1}}, "'data.pooled' must be true with partition.kind"),
        ({"partition": {"kind": "iid"}}, "'data.pooled' must be true with partition.kind 'iid'"),
        ({"partition": {"kind": "dirichlet", "alpha": 0.01}}, "'data.pooled' must be true with partition.kind"),
        (
            {"data": SECTION | {"max_images_per_site": {"val": 1}}},
            "'data.pooled' must be true with data.max_images_per_site",
        ),
        ({"data": SECTION | {"fold": {"number": 1, "of": 100}}}, "'data.pooled' must be true with data.fold"),
        ({"partition": {"feature_shift": {"blur": 2.0}}}, "'data.pooled' must be true with partition.feature_shift"),
    ],
)
def test_a_malicious_job_cannot_make_a_site_count_something_else(make_experiment, make_csv_site, sections, message):
    """With what a hospital sets in good faith: its table has more columns than the one that is to be learned."""
    site = make_csv_site(ROWS, images=False, columns={"site": "hospital"})
    with pytest.raises(UserError, match=message):
        site_images(make_experiment(**{"data": SECTION} | sections), site, "a", ["a", "b"])


def test_a_sites_own_images_have_the_same_splits_in_all_jobs(make_experiment, make_csv_site):
    """Else sums over the training images of two jobs of other seeds differ by some images, of many jobs by any."""
    own = make_csv_site([{**row, "file": f"{copy}{row['file']}"} for row in ROWS for copy in "abc"], images=False)
    pooled = own.model_copy(update={"data": own.data.model_copy(update={"pooled": True})})

    def drawn(site) -> set[tuple[str, ...]]:
        jobs = [make_experiment(data=SECTION, seed=seed) for seed in range(3)]
        orders = itertools.permutations(SECTION["classes"])
        jobs += [make_experiment(data={**SECTION, "classes": [*order, "none at the site"]}) for order in orders]
        return {tuple(one.file for one in site_images(job, site, "a", ["a"]).items("train")) for job in jobs}

    assert len(drawn(own)) == 1
    assert len(drawn(pooled)) > 1


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ["naevus", "melanoma", "other", "hiv"],
            "no columns of the class 'hiv'; where data.columns.label is null it must",
        ),
        (["naevus", "melanoma"], "the class 'other', which the experiment does not have"),
    ],
)
def test_no_job_names_a_column(make_experiment, make_csv_site, classes, message):
    """Else each choice of them leaves out other images with an uncertain label, and gives other splits."""
    row = {"file": "0.png", "naevus": "1", "melanoma": "-1", "other": "0", "hiv": "1"}
    listed = {name: [name] for name in SECTION["classes"]}
    columns = {"label": None, "split": None}
    site = make_csv_site([row], images=False, columns=columns, classes=listed, uncertain="ignore")
    section = {**SECTION, "task": "multilabel"}
    (item,) = listed_items(make_experiment(data={**section, "classes": ["other", "melanoma", "naevus"]}), site)
    assert (item.labels, item.not_known) == ((2,), (1,))
    with pytest.raises(UserError, match=rf"^site\.json: field 'data\.classes' has {message}"):
        listed_items(make_experiment(data={**section, "classes": classes}), site)


def test_a_site_that_lists_its_classes_does_not_tell_which_it_has(make_experiment, make_csv_site):
    """Else two jobs tell whether an image has a class that is too rare to be counted."""
    without = make_experiment(data={**SECTION, "classes": ["naevus", "melanoma"]})
    for rows, listed in itertools.product((ROWS, ROWS[:2]), (True, False)):
        site = make_csv_site(rows, images=False, classes={name: [name] for name in SECTION["classes"] if listed})
        if listed:
            with pytest.raises(UserError, match="the class 'other', which the experiment does not have"):
                listed_items(without, site)
        elif rows == ROWS:
            with pytest.raises(UserError, match=r"'other' \(4 image\(s\), .* means none of the experiment's classes"):
                listed_items(without, site)
        else:
            assert len(listed_items(without, site)) == 2


def test_what_it_was_asked_for_is_counted_all_of_it(make_experiment, make_csv_site):
    site = make_csv_site(ROWS, images=False, columns={"site": "hospital"})
    images = site_images(make_experiment(data=SECTION), site, "a", ["a", "b"])
    counts = Counter(item.values for split in SPLITS for item in images.items(split))
    assert counts == {("naevus",): 4, ("melanoma",): 4, ("other",): 4}
