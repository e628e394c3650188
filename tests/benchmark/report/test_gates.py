"""Gates of a suite, and the report that they stop."""

from typing import Any

import pytest
from report_suites import PARAMETERS, change, lines_of, planned, write_suite

from benchmark.__main__ import main
from benchmark.report.gates import judge
from benchmark.report.panels import panels
from benchmark.report.results import read_results
from benchmark.sweep.records import ChoiceAxes, ChoiceRecord, TriedSettings
from benchmark.sweep.suite import Suite
from pt_peft.errors import UserError
from pt_peft.schema import parse

AXES = {"domain": "in-domain", "data": "cifar10", "partition": "iid", "backbone": "imagenet", "variant": "default"}


@pytest.fixture
def suite(tmp_path):
    """Writes results of a suite with these gates: accuracies from .54 of linear_probe to .66 of full, pooled .8."""

    def write(gates: dict[str, Any], **fields: Any):
        planned_too = {name: fields.pop(name) for name in ("seeds_planned",) if name in fields}
        seeds = planned_too.get("seeds_planned", [0, 1, 2])
        return write_suite(tmp_path / "gated.jsonl", suite=planned(gates=gates, seeds=seeds), images=160, **fields)

    return write


def verdict(path):
    results = read_results(path)
    (one,) = judge(results, panels(results, 10))
    return one


@pytest.mark.parametrize(
    ("of", "least", "state"), [("full", 0.6, "passed"), ("pooled", 0.75, "passed"), ("pooled", 0.85, "failed")]
)
def test_a_floor_is_of_a_method_or_a_baseline(suite, of, least, state):
    one = verdict(suite({"floors": {"trains": {"of": of, "at_least": least, "metric": "accuracy", "data": "cif*"}}}))
    assert one.state == state
    assert one.gate == "floors.trains"


def test_a_failed_gate_stops_the_report(suite, tmp_path, capsys):
    path = suite({"floors": {"trains": {"of": "full", "at_least": 0.83}}, "rates_inside": True}, methods=("full",))
    out = tmp_path / "out"
    assert main(["report", str(path), "--out", str(out)]) == 1
    fault, last = capsys.readouterr().err.splitlines()
    assert "no report is written" in last
    cells = [line for line in lines_of(path) if line["kind"] == "cell" and line["axes"]["method"] == "full"]
    mean = sum(cell["final"]["test"]["pooled"]["balanced_accuracy"] for cell in cells) / 3
    assert fault == (
        f"gate floors.trains: on cifar10 (in-domain), iid, default, imagenet, full reaches {100 * mean:.1f} % balanced "
        "accuracy (mean of 3); 83.0 % or more would be right."
    )
    assert not out.exists()
    assert main(["summary", str(path), "--out", str(tmp_path / "mine.json")]) == 1
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "mine.json").exists()
    assert main(["report", str(path), "--out", str(out), "--draft"]) == 0
    markdown = (out / "report.md").read_text()
    assert "Mind:** A gate of the suite failed: gate floors.trains" in markdown
    assert "The claims are not answered" in markdown
    assert "Claim 1" not in markdown
    assert "| floors.trains | full reaches 83.0 % balanced accuracy or more | failed |" in markdown


def test_a_gate_without_its_cells_is_open(suite, tmp_path):
    path = suite({"floors": {"trains": {"of": "full", "at_least": 0.5}}}, seeds_planned=[0, 1, 2, 3], methods=("full",))
    one = verdict(path)
    assert (one.state, one.missing) == ("open", ["full on cifar10 (in-domain), iid, default, imagenet, seed or fold 3"])
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "Mind:** Gate floors.trains is open: it cannot be judged before 1 planned result more is there" in markdown
    assert "Claim 1" in markdown


def test_what_is_finished_fails_a_floor_though_cells_are_missing(suite):
    assert (
        verdict(suite({"floors": {"trains": {"of": "full", "at_least": 0.9}}}, seeds_planned=[0, 5])).state == "failed"
    )


def test_no_method_is_below_the_linear_probe_in_two_panels(suite):
    partitions = {"iid": {"kind": "iid"}, "natural": {"kind": "natural"}}
    falling = [("in-domain", "cifar10", partition, -6.0) for partition in partitions]
    for most, shown, state in ((0, 1, "failed"), (1, 1, "open"), (1, 2, "failed"), (2, 2, "passed")):
        path = suite({}, panels=falling[:shown])
        task = {"domain": "in-domain", "sites": ["north"], "data": {"source": "synthetic"}}
        fields = planned(
            gates={"not_below": {"panels": most}}, partitions=partitions, data={"cifar10": task}, tuning=None
        )
        change(path, lambda line, fields=fields: line.update(suite=fields), kind="suite")
        assert verdict(path).state == state, (most, shown)
    path = suite(
        {"not_below": {"panels": 0}}, panels=[("in-domain", "cifar10", "iid", -6.0)], methods=("linear_probe", "full")
    )
    (fault,) = verdict(path).faults
    assert fault.startswith("full is below linear_probe in 1 panels (cifar10 (in-domain), iid, default, imagenet: -")
    assert fault.endswith("points); none would be right")
    assert len(verdict(path).missing) == 3


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ((0.6, 0.5, 0.4), "lowest rate was chosen, 0.0001 of"),
        ((0.4, 0.6, 0.5), None),
        ((0.4, 0.5, 0.6), "highest rate was chosen, 0.01 of"),
    ],
)
def test_a_rate_at_the_edge(suite, values, fault):
    path = suite({"rates_inside": True}, rates=dict(zip((1e-4, 1e-3, 1e-2), values, strict=True)))
    faults = verdict(path).faults
    assert len(faults) == (len(PARAMETERS) if fault else 0)
    if fault:
        start = f"for cifar10, iid, imagenet, default, lora the {fault} 0.0001, 0.001, 0.01; trials at a"
        assert any(one.startswith(start) for one in faults)
    change(path, lambda line: line["axes"]["method"] == "lora", kind="choice")
    assert verdict(path).missing == ["the trials of cifar10, iid, imagenet, default, lora"]


def test_one_rate_is_at_both_edges(suite):
    path = suite({"rates_inside": True}, rates={1e-4: 0.5})
    assert verdict(path).faults[0].endswith("only the rate 0.0001 was tried; three or more would be right")


def test_a_floor_that_is_for_nothing_stays_open(tmp_path):
    """The suite has the partition, but not of these data."""
    floor = {"of": "full", "at_least": 0.1, "data": "cifar10", "partition": "natural"}
    partitions = {"iid": {"kind": "iid"}, "natural": {"kind": "natural"}}
    fields = planned(gates={"floors": {"trains": floor}}, partitions=partitions)
    assert verdict(write_suite(tmp_path / "gated.jsonl", suite=fields, images=160)).state == "open"


def test_the_edge_is_that_of_the_rates_with_the_same_options():
    def tried(rate: float, rank: int, val: float | None = 0.5) -> TriedSettings:
        return TriedSettings(learning_rate=rate, head_learning_rate=None, options={"lora": {"rank": rank}}, val=val)

    trials = [tried(0.1, 4), tried(0.2, 4), tried(0.4, 4, None), tried(0.2, 8), tried(0.1, 8)]
    found = [
        ChoiceRecord(axes=ChoiceAxes(**AXES, method="lora"), trials=trials, chosen=place).edge for place in (1, 0, 3)
    ]
    assert found == [None, "lowest", "highest"]


def test_old_files_have_no_gates(tmp_path):
    results = read_results(write_suite(tmp_path / "old.jsonl", methods=("lora",), images=60))
    assert judge(results, panels(results, 10)) == []


@pytest.mark.parametrize(
    ("gates", "error"),
    [
        ({"floors": {"a": {"of": "adapter", "at_least": 0.5}}}, "'a' is of 'adapter', which is none of linear_probe"),
        ({"floors": {"a": {"of": "full", "at_least": 0.5, "data": "ham*"}}}, "'a' is for data 'ham*', but"),
        ({"floors": {"a": {"of": "full", "at_least": 83}}}, "gates.floors.a.at_least' is 83"),
        ({"not_below": {"method": "norm"}}, "'not_below' names 'norm'"),
    ],
)  # fmt: skip
def test_gates_of_what_the_suite_does_not_have(gates, error):
    with pytest.raises(UserError, match=r"field 'gates") as caught:
        parse(Suite, {**planned(), "gates": gates}, "suite")
    assert error in str(caught.value)
    with pytest.raises(UserError, match="the suite has no 'tuning'"):
        parse(Suite, {**planned(tuning=None), "gates": {"rates_inside": True}}, "suite")
