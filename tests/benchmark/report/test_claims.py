"""The three claims: what is computed, what is said of it, and how often it is true in simulated reports."""

import re
from typing import cast

import numpy as np
import pytest
from report_suites import TEN, change, known, planned, write_suite

from benchmark.measurements.intervals import over_seeds, p_above, p_of_several
from benchmark.report.answers import answers
from benchmark.report.blocks import in_brackets
from benchmark.report.claims import Cost, Start, Table, cost, holding, start, tabulate
from benchmark.report.panels import panels
from benchmark.report.results import read_results
from benchmark.report.slopes import fit

REPORTS = 1500
SIZES = np.log10(sorted(TEN.values()))
METHODS = tuple(sorted(TEN, key=TEN.__getitem__))
PANELS = (
    ("in-domain", "cifar10", "iid", 0.0),
    ("out-of-domain", "ham10000", "iid", 3.0),
    ("out-of-domain", "ham10000", "natural", 6.0),
)
folds = pytest.mark.parametrize("folds", [3, 5])


def table_of(points: np.ndarray) -> Table:
    """Of points (P,B,M,K)."""
    seeds = tuple(range(points.shape[3]))
    return Table((), ("one", "other")[: points.shape[1]], METHODS[-points.shape[2] :], seeds, SIZES, points)


def simulated(folds: int, *spreads: tuple[tuple[int, ...], float]):
    """Tables of two panels: sums of normal numbers of these shapes and standard deviations, broadcast."""
    random = np.random.default_rng(folds)
    for _ in range(REPORTS):
        yield sum((random.normal(size=shape) * spread for shape, spread in spreads), np.zeros((2, 1, 10, folds)))


@folds
@pytest.mark.parametrize(("others", "wrong"), [(4.0, "supported"), (-4.0, "not supported")])
def test_most_hold_or_not_is_seldom_said_by_mistake(folds, others, wrong):
    """One short of most are far on one side of the margin, the rest at it; full fine-tuning's noise is in all."""
    truth = np.full((10, 1), -1.0)
    truth[[0, 2, 4, 6]], truth[9] = others, 0
    shapes = (((2, 1, 1, folds), 1.0), ((2, 1, 10, folds), 0.5))
    reports = list(simulated(folds, *shapes))[:800]
    found = [known(holding(table_of(points + truth), METHODS)).answer for points in reports]
    assert found.count(wrong) <= 0.03 * len(found)
    truth = truth + 5 * np.sign(others) * (truth != 0)
    clear = [known(holding(table_of(points + truth), METHODS)).answer for points in reports[:30]]
    assert clear.count(wrong) > 0.8 * len(clear) or folds == 3


@folds
def test_the_cost_of_a_decade_covers_the_truth(folds):
    """Methods lie off the line, partly in all panels alike; folds turn it."""
    line = (4 * (SIZES - SIZES.mean()))[:, None]
    shapes = (((1, 1, 10, 1), 2.0), ((2, 1, 10, 1), 1.0), ((2, 1, 10, folds), 1.0))
    found = []
    for number, points in enumerate(simulated(folds, *shapes)):
        turn = np.random.default_rng(number).normal(size=folds) * (SIZES - SIZES.mean())[:, None]
        found.append(Cost(table_of(points + turn + line)).over_methods)
    assert 0.93 <= np.mean([one.low <= 4 <= one.high for one in found]) <= 0.97


@folds
@pytest.mark.parametrize(("adds", "methods", "noise"), [(4, 3.0, 1.0), (2, 1.0, 1.0), (1, 0.3, 1.0), (6, 2.0, 2.0)])
def test_model_less_method_covers_the_truth(folds, adds, methods, noise):
    of_method = np.sin(7 * SIZES)
    of_method = (of_method - of_method.mean()) / of_method.std(ddof=1) * methods
    truth = np.array([adds / 2, -adds / 2])[:, None, None] + of_method[:, None]
    shapes = (((1, 1, 1, folds), 2.0), ((2, 2, 1, folds), 1.0), ((2, 2, 10, folds), noise))
    found = [Start(table_of(points + truth)).difference for points in simulated(folds, *shapes)]
    wanted = adds - 2**0.5 * methods
    assert 0.93 <= np.mean([one.low <= wanted <= one.high for one in found]) <= 0.97


def test_p_of_several():
    assert p_of_several([0.04, 0.001, 0.5, 0.01], 3) == pytest.approx(2 * 0.04)
    assert p_of_several([0.04, 0.001], 1) == pytest.approx(2 * 0.001)
    assert p_above([1.0, 2.0, 3.0], 2.0) == pytest.approx(0.5)
    assert p_above([1.0, 2.0, 3.0], 0.0) == pytest.approx(0.0371, abs=1e-4)
    assert p_above([1.0, 1.0], 1.0) == 1


def table_of_four(points: np.ndarray) -> Table:
    return Table((), ("one",), ("a", "b", "c", "full"), (1, 2, 3), SIZES[:4], points[None, None])


def test_what_holds():
    """Differences of -0.5, -3 and -1 points, the first two with hardly any spread."""
    points = np.array([[69.5, 69.6, 69.4], [67.0, 67.1, 66.9], [72.0, 69.0, 66.0], [70.0, 70.0, 70.0]])
    found = known(holding(table_of_four(points), ["a", "b", "c", "full"]))
    assert (found.where("supported"), found.where("not supported")) == (["a"], ["b"])
    assert found.where("the data cannot tell") == ["c"]
    assert found.mean == over_seeds(np.mean(points[:3] - 70, axis=0).tolist())
    assert (found.majority, found.answer) == (2, "the data cannot tell")
    assert found.folds is None, "c is at the margin itself"
    points[2] += 0.5
    needed = known(known(holding(table_of_four(points), ["a", "b", "c", "full"])).folds)
    assert 100 < needed <= 200, "at a spread of 3 points, half a point inside the margin"
    two = known(holding(found.table.without("c"), ["a", "b", "full"]))
    assert two.answer == "not supported", "one of two is not most"
    planned = known(holding(found.table.without("b"), ["full", "a", "b", "c", "d", "e"]))
    assert (planned.missing, planned.majority) == (["b", "d", "e"], 3)
    assert (planned.answer, planned.margin) == ("the data cannot tell", None), "two of five are known"
    assert holding(found.table.without("full"), ["full"]) is None


def test_a_cost_takes_three_methods_and_more_than_nothing():
    points = np.array([[60.0, 61.0, 62.0]] * 4)
    flat = known(cost(table_of_four(points)))
    assert flat.answer[0] == "the data cannot tell", "no cost in any seed is no cost"
    assert cost(table_of_four(points).without("a").without("b")) is None, "two points are on a line"


def test_without_noise_the_method_part_is_the_root_mean_square_over_pairs():
    points = np.array([1.0, 2.0, 4.0])
    found = known(start(Table((), ("x", "y"), ("a", "b", "c"), (1, 2, 3), SIZES[:3], np.repeat(
        np.stack([points + 5, points])[None, :, :, None], 3, axis=3))))  # fmt: skip
    assert found.model.value == pytest.approx(5)
    assert found.method == pytest.approx(np.sqrt((1**2 + 2**2 + 3**2) / 3))
    assert found.answer == "supported"
    noise = np.random.default_rng(0).normal(size=(1, 2, 10, 400)) * 3
    assert Start(table_of(noise)).method < 0.5, "noise is no part of it"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three panels, two initial models 10 points apart, three folds."""
    path = tmp_path_factory.mktemp("claims") / "claims.jsonl"
    starts = (("imagenet", 0.55), ("lesions", 0.65))
    write_suite(path, panels=PANELS, backbones=starts, seeds=(1, 2, 3), folds=5, images=400, baselines=False)
    lesions = {"backbone": {"name": "vit_tiny_patch16_224"}, "weights": "w", "pretraining": {"data": {}}}
    fields = planned(backbones={"imagenet": {}, "lesions": lesions})
    change(path, lambda line: line.update(suite=fields), kind="suite")
    return read_results(path)


def test_sentences_follow_the_intervals(results):
    found = panels(results, 10)
    said, tables = answers(results, found)
    first, second, third = said
    by_name = {(one.key.data, one.key.partition): one for one in found}
    methods = cast(list[str], results.suite["methods"])
    hold = known(holding(tabulate([by_name["cifar10", "iid"]], ["imagenet"]), methods))
    assert first.startswith("Claim 1, most PEFT methods hold in-domain, less than 1 point below full fine-tuning: ")
    assert f"full fine-tuning: {hold.answer}. From imagenet, on cifar10 iid, " in first
    assert f"Their mean difference is {hold.mean.value:+.1f} [{hold.mean.low:+.1f}, " in first
    assert "(n = 3 folds)" in first
    natural = by_name["ham10000", "natural"]
    fitted = known(fit(natural, "imagenet", "balanced_accuracy"))
    these, others = fitted.slope.over_seeds, in_brackets(known(fitted.over_methods))
    assert f"From imagenet, on ham10000 natural, a tenth of the parameters costs {these.value:+.1f} points" in second
    assert f" ({in_brackets(these)} with these 5 methods; {others} as if others had been chosen, on which " in second
    assert "a cost at all, supported; 4 points, " in second
    assert "On ham10000 iid, in balanced accuracy: +" in second
    both = known(start(tabulate([by_name["ham10000", "iid"], natural], ["lesions", "imagenet"])))
    assert "On ham10000 iid and ham10000 natural, lesions in place of imagenet adds +" in third
    assert f"matters more than the method: {both.answer}. " in third
    assert f"the first less the second is {both.difference.value:+.1f} [{both.difference.low:+.1f}, " in third
    assert "With any one method left out it is" in third
    assert [table.caption[:7] for table in tables] == ["Claim 1", "Claim 2", "Claim 3"]
    assert [len(table.rows) for table in tables] == [4, 3 * 2 * 2, 2]


def test_what_is_not_there_is_said(tmp_path):
    path = write_suite(tmp_path / "one.jsonl", methods=("lora", "bitfit"), seeds=(0, 1), images=60, baselines=False)
    results = read_results(path)
    first, second, third = answers(results, panels(results, 10))[0]
    for said in (first, second, third):
        assert re.search(r": the data cannot tell\. .*(lacks|one initial model)", said)


@pytest.mark.parametrize(
    ("domain", "kind", "answered"), [("generated", "natural", False), ("out-of-domain", "none", False),
                                     ("out-of-domain", "iid", False), ("out-of-domain", "natural", True)],
)  # fmt: skip
def test_the_second_claim_is_of_panels_out_of_domain_that_were_dealt_unequally(tmp_path, domain, kind, answered):
    path = write_suite(tmp_path / "one.jsonl", panels=((domain, "a", "b", 4.0),), images=60, baselines=False)
    change(path, lambda line: line["experiment"].update(partition={"kind": kind}))
    results = read_results(path)
    said = answers(results, panels(results, 10))[0][1]
    assert ("the suite lacks a non-IID panel of domain 'out-of-domain'" not in said) == answered


def test_a_panel_that_has_begun_takes_no_seed_from_the_others(results, tmp_path):
    few = [cell for cell in results.cells if cell.axes.partition != "iid" or cell.axes.seed == 1]
    found = panels(type(results)(**{**vars(results), "cells": few}), 10)
    outside = [one for one in found if one.key.domain == "out-of-domain"]
    table = known(tabulate(outside, ["imagenet"]))
    assert [one.key.partition for one in table.panels] == ["natural"]
    assert table.seeds == (1, 2, 3)
    said, _ = answers(results, found)
    assert str(said[2]).endswith("Not counted, as not enough is finished: ham10000 iid.")
    assert cost(tabulate(outside[:1], ["imagenet"])) is None, "one seed"


def test_a_method_that_has_begun_takes_no_seed_and_no_panel_from_the_others(results):
    """Of the natural panel one method has a fold alone; the equal one lacks another method altogether."""
    kept = [
        cell
        for cell in results.cells
        if (cell.axes.partition, cell.axes.method) != ("iid", "bitfit")
        and (cell.axes.data, cell.axes.partition, cell.axes.method, cell.axes.seed)
        not in (("ham10000", "natural", "lora", 2), ("ham10000", "natural", "lora", 3))
    ]
    changed = type(results)(**{**vars(results), "cells": kept})
    found = panels(changed, 10)
    table = known(tabulate([one for one in found if one.key.domain == "out-of-domain"], ["imagenet"]))
    assert ([one.key.partition for one in table.panels], table.seeds) == (["iid"], (1, 2, 3))
    assert table.methods == ("linear_probe", "vpt_shallow", "lora", "full")
    second = str(answers(changed, found)[0][1])
    assert "with these 4 methods" in second
    assert second.endswith("Not counted, as not enough is finished: lora.")
