"""Counts of a site's images: what is counted, and that no small count can be told from what leaves."""

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from helpers import changed
from pt_peft.data.sources import site_images
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.federation.image_statistics import EDGES, ImageReport, bounds, carried, class_order, image_report
from pt_peft.schema import parse


@pytest.mark.parametrize(
    ("counts", "least", "left"),
    [
        ([60, 38, 12], 5, [60, 38, 12]),
        ([2, 60, 38], 5, [0, 62, 38]),
        ([60, 38, 2], 5, [60, 40, 0]),
        ([60, 38, 0], 5, [60, 38, 0]),
        ([60, 6, 2], 5, [68, 0, 0]),  # of 8 images in two cells, the last had 0 to 3
        ([3, 3, 3], 5, [0, 9, 0]),
        ([0, 8, 0], 5, [0, 0, 8]),
        ([0, 1, 0, 7], 1, [0, 1, 0, 7]),
    ],
)
def test_what_is_too_small_is_counted_elsewhere(counts, least, left):
    assert carried(counts, least) == left
    assert carried(left, least) == left


def test_no_small_count_can_be_told_from_what_leaves():
    """By all tables of four cells and up to twelve images: whoever knows the rule is left with `least` explanations."""
    least, explanations = 3, defaultdict(list)
    for counts in itertools.product(range(13), repeat=4):
        if least <= sum(counts) <= 12:
            explanations[tuple(carried(counts, least))].append(counts)
    assert len(explanations) > 50
    for left, tables in explanations.items():
        assert {sum(table) for table in tables} == {sum(left)}
        assert all(count == 0 or count >= least for count in left)
        for place, (fewest, most) in enumerate(bounds(left, least)):
            possible = {table[place] for table in tables}
            assert fewest <= min(possible) <= max(possible) <= most
            assert min(possible) >= least or len(possible) >= least, (left, place, possible)


def test_bounds():
    assert bounds([60, 38, 12], 5) == [(60, 60), (38, 38), (12, 12)]
    assert bounds([0, 62, 38], 5) == [(0, 4), (58, 62), (38, 38)]
    assert bounds([60, 40, 0], 5) == [(60, 60), (32, 40), (0, 8)]
    assert bounds([0, 0, 8], 5) == [(0, 8)] * 3
    assert bounds([0, 1, 0, 7], 1) == [(0, 0), (1, 1), (0, 0), (7, 7)]


@pytest.fixture
def own(tmp_path, tiny):
    """An experiment, and a site: 12 dark images of class a, 7 bright squares of b and 2 of c, and a broken file."""
    (tmp_path / "images").mkdir()
    rows = ["file,label,split"]
    for number in range(21):
        label, (width, height), grey = ("a", (200, 100), 26) if number < 12 else ("b", (70, 70), 230)
        label = "c" if number > 18 else label
        Image.new("L", (width, height), grey).save(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number}.png,{label},train")
    rows += ["broken.png,a,train", "0v.png,a,val"]
    Image.new("L", (64, 64), 0).save(tmp_path / "images" / "0v.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    data = {"images": str(tmp_path / "images"), "table": str(tmp_path / "table.csv")}
    site = parse(Site, {"data": data, "max_unreadable": 0.1, "limits": {"min_train_images": 10}}, "site.json")
    return changed(tiny, data={"source": "site", "classes": ["c", "b", "a"]}), site


def count(experiment, site) -> Any:
    images = site_images(experiment, site, "site-1", ["site-1"])
    return parse(ImageReport, image_report(experiment, site, images), "report").checked(experiment)


def counted(counts, name):
    """By the lower edge of its bin each count that is not 0."""
    return {EDGES[name][place]: number for place, number in enumerate(counts) if number}


def test_a_site_counts_what_can_be_read(own):
    experiment, site = own
    report = count(experiment, site.model_copy(update={"limits": Limits.open()}))
    assert (report.least, report.train.images, report.val.images, report.test) == (1, 21, 1, None)
    assert report.train.classes == [2, 7, 12]  # as data.classes has them
    assert counted(report.train.width, "width") == {64: 9, 192: 12}
    assert counted(report.train.height, "height") == {64: 21}
    assert counted(report.train.brightness, "brightness") == {0.1: 12, 0.9: 9}
    assert counted(report.train.contrast, "contrast") == {0: 21}


def test_with_limits_it_tells_less(own):
    experiment, site = own
    report = count(experiment, site)
    assert (report.least, report.val) == (5, None)
    assert report.train.classes == [0, 9, 12]  # a, b, and c at the end: 2 go back to b
    report.check_limits(site.limits)
    few = site.model_copy(update={"limits": Limits(min_train_images=22)})
    assert count(experiment, few).train is None


def test_too_many_that_cannot_be_read_are_an_error(own):
    experiment, site = own
    with pytest.raises(UserError, match=r"1 of 23 images cannot be read; .* allows 0, and check-site names them"):
        count(experiment, site.model_copy(update={"max_unreadable": 0.01}))


def test_generated_images_are_counted_too(tiny):
    report = count(tiny, Site(limits=Limits.open()))
    assert (report.train.images, sum(report.train.classes)) == (40, 40)
    assert counted(report.train.width, "width") == {0: 40}
    assert sum(report.train.brightness) == sum(report.train.contrast) == 40


def statistics(images, classes):
    tables = {name: [images] + [0] * (len(edges) - 2) for name, edges in EDGES.items()}
    return {"images": images, "classes": classes, **tables}


def report(least=5, **splits) -> ImageReport:
    return ImageReport.model_validate({"least": least, "train": None, "val": None, "test": None} | splits)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": [40, 40]}, "classes has 2 counts; 4 would be right"),
        ({"classes": [40, 20, 20, 10]}, "classes counts 90 images; 80 would be right"),
        ({"classes": [38, 2, 20, 20]}, "classes has counts of fewer than 5 images"),
        ({"width": [77, 3, *[0] * 11]}, "width has counts of fewer than 5 images"),
        ({"images": 4}, "images is 4; 5 at least would be right"),
    ],
)
def test_counts_that_may_not_leave(changes, says, tiny):
    report(train=statistics(80, [40, 20, 10, 10])).checked(tiny)
    with pytest.raises(UserError, match=says) as error:
        report(train=statistics(80, [40, 20, 10, 10]) | changes).checked(tiny)
    assert error.value.reason.field == next(iter(changes))  # pyright: ignore[reportAttributeAccessIssue]


def test_a_site_does_not_count_less_than_it_has_said():
    limits, fine = Limits(), statistics(60, [60, 0, 0, 0])
    report(train=fine).check_limits(limits)
    with pytest.raises(UserError, match="least is 1; 5 would be right"):
        report(1, train=fine).check_limits(limits)
    with pytest.raises(UserError, match="val has 9 images; 10 at least would be right"):
        report(val=statistics(9, [9, 0, 0, 0])).check_limits(limits)


@pytest.mark.parametrize(
    ("labelled", "told", "right"), [(2, 0, False), (40, 40, True), (77, 80, False), (80, 80, True), (0, 0, True)]
)
def test_a_class_beside_others_is_a_table_of_its_own(labelled, told, right, tiny):
    """Where all but two images have a class, their number would tell of two."""
    several = changed(tiny, data={"source": "site", "task": "multilabel"})
    assert carried([labelled, 80 - labelled], 5)[0] == told
    whole = report(train=statistics(80, [told, 80, 0, 40]))
    assert whole.checked(several) == whole
    if not right:
        with pytest.raises(UserError, match="classes has counts of fewer than 5 images"):
            report(train=statistics(80, [labelled, 80, 0, 40])).checked(several)


def test_no_job_chooses_the_order_in_which_classes_are_carried(tiny):
    """From counts in two orders a small one follows: 20, 3 and 30 leave as 20, 0, 33, and backwards as 30, 0, 23."""
    for names in (["a", "b", "c", "d"], ["d", "b", "a", "c"]):
        experiment = changed(tiny, data={"source": "site", "classes": names})
        assert [names[place] for place in class_order(experiment)] == ["a", "b", "c", "d"]


def test_what_all_tables_together_would_tell_is_not_counted(own):
    """Of 21 images without a second class 12 and 7 leave 2; in an npz the order of classes is the job's."""
    experiment, site = own
    several = changed(experiment, data={"task": "multilabel"})
    with pytest.raises(
        UserError, match=r"no image of the site has two of the classes: .*; 'multiclass' would be right"
    ):
        count(several, site)
    assert count(several, site.model_copy(update={"limits": Limits.open()})).train.classes == [2, 7, 12]
    table = Path(str(site.data.table))
    table.write_text(table.read_text().replace("\n0.png,a,train", "\n0.png,a|b,train"))
    assert count(several, site).train.classes == [0, 8, 12]
    of_npz: Any = {"source": "npz", "classes": {"a": ["0"], "b": ["1"]}}
    with pytest.raises(UserError, match=r"field 'data\.classes' has no values of class 'c', which in an npz"):
        image_report(experiment, parse(Site, {"data": of_npz}, "site.json"), cast(Any, None))


def test_bins_are_in_order():
    for edges in EDGES.values():
        assert np.all(np.diff(edges) > 0)
