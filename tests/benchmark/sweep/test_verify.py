"""``python -m benchmark verify``: what it draws, runs again and says of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmark.__main__ import main
from benchmark.oracle.predictions import Predictions
from benchmark.sweep import rerun
from benchmark.sweep.records import BaselineRecord, CellRecord, SuiteRecord
from benchmark.sweep.rerun import draw
from benchmark.sweep.result_file import ResultFile, read, suite_of
from benchmark.sweep.runs import failure, run_cell
from benchmark.sweep.suite import InitialModel, Pretraining, Suite
from benchmark.sweep.sweep import Sweep
from helpers import ROOT

LORA, POOLED = "lesions.none.embedded.default.lora.0", "lesions.none.embedded.default.pooled.0"


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The results of a federated run and a baseline, a failure, and what is missing; the clone has no such suite."""
    fields = yaml.safe_load((ROOT / "benchmark" / "suites" / "smoke.yaml").read_text())
    fields["data"]["lesions"]["data"]["images_per_site"] = {"train": 16, "val": 8, "test": 16}
    folder = tmp_path_factory.mktemp("results")
    (folder / "small.yaml").write_text(yaml.safe_dump({**fields, "name": "small", "tuning": None}))
    suite, path = Suite.read(str(folder / "small.yaml")), folder / "small.jsonl"
    cells = {cell.name: cell for cell in Sweep(suite, path, "reference", 0).grid(lambda _: True).runs([])}
    with ResultFile.open(path, SuiteRecord(name="small", suite=suite.model_dump(mode="json"))) as results:
        for name in (LORA, POOLED):
            results.append(run_cell(cells[name], "reference", verify=False))
        results.append(failure(cells["lesions.none.embedded.default.linear_probe.0"], "reference", "a reason"))
    return path


def altered(source: Path, target: Path, alter: Callable[[dict[str, Any]], object], name: str = LORA) -> Path:
    """Writes `source` to `target`, with the record `name` changed by `alter`."""
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    alter(next(line for line in lines if line["name"] == name))
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target


def verify(path: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and what was compared, by name."""
    out = path.with_suffix(".verified.json")
    code = main(["verify", str(path), "--out", str(out), *options])
    return code, {one["name"]: one for one in json.loads(out.read_text())["compared"]}


def test_the_same_machine_finds_the_same(swept, capsys):
    before = swept.read_bytes()
    code, found = verify(swept, "--cells", "5", "--seed", "1")
    assert code == 0
    assert {name: one["verdict"] for name, one in found.items()} == {LORA: "identical", POOLED: "identical"}
    assert found[LORA]["max_logit_difference"] == 0
    assert found[LORA]["agreement"] == 1
    assert {one["model"] for one in found[POOLED]["metrics"]} == {"pooled", "majority class"}
    for one in found.values():
        assert one["recorded"]["provenance"]["versions"] == one["rerun"]["provenance"]["versions"]
        assert one["recorded"]["provenance"] != {}
    assert swept.read_bytes() == before, "the results are only read"
    said = capsys.readouterr().out
    assert "2 of" in said
    assert "drawn with --seed 1" in said
    assert "2 cells: 2 identical, 0 alike within 1 points" in said
    asked = json.loads(swept.with_suffix(".verified.json").read_text())["asked"]
    assert asked == {"cells": 5, "seed": 1, "only": [], "tolerance_points": 1.0}


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (lambda line: line.update(exchanged_parameters=9605), "exchanged parameters"),
        (lambda line: line["rounds"][1].update(bytes_in=1), "bytes by round"),
        (lambda line: line["rounds"][0]["sites"]["site-1"].update(num_samples=15), "numbers of training images"),
        (lambda line: line["site_data"].update(no_finding="x"), "what the images mean"),
        (lambda line: line["final"]["test"]["pooled"].update(auroc=0.1), "auroc of federated"),
    ],
)
def test_what_is_counted_must_be_equal(swept, tmp_path, alter, reason):
    before, after = (read(path).runs[LORA] for path in (altered(swept, tmp_path / "small.jsonl", alter), swept))
    assert isinstance(before, CellRecord)
    assert isinstance(after, CellRecord)
    found = rerun._compared(before, after, [], [], 1.0)
    assert (found.verdict, found.reasons) == ("different", [reason])


def test_what_differs_is_named_and_the_exit_code_says_so(swept, tmp_path, capsys):
    path = altered(swept, tmp_path / "small.jsonl", lambda line: line["rounds"][1].update(bytes_in=1))
    code, found = verify(path, "--only", "method=lora")
    assert (code, found[LORA]["verdict"]) == (1, "different")
    captured = capsys.readouterr()
    assert "not equal: bytes by round" in captured.out
    assert f"the first, '{LORA}': different: bytes by round" in captured.err


def test_other_labels_and_groups_are_seen(swept):
    """Also where a record keeps no predictions: the confusion counts have the labels."""
    cell, baseline = (read(swept).runs[name] for name in (LORA, POOLED))
    assert isinstance(cell, CellRecord)
    assert isinstance(baseline, BaselineRecord)
    facts = rerun._facts(cell)
    assert facts["labels of the test images"] == cell.predictions.labels.tolist()
    assert facts["groups of the test images"] == known(cell.predictions.group).tolist()
    assert facts["sites of the test images"] == ["site-1"] * 16 + ["site-2"] * 16
    assert rerun._facts(baseline)["labels of the test images"] == [[8, 8, 8, 8]] * 2
    row = baseline.rows[0].test.pooled
    multilabel = {**baseline.experiment, "data": {"task": "multilabel"}}
    counts = row.model_copy(update={"confusion": [[1, 2, 3, 4]]})
    assert rerun._labels(counts, baseline.model_copy(update={"experiment": multilabel})) == [7]


def known(value):
    assert value is not None
    return value


def test_the_recorded_experiment_is_run_and_a_suite_that_has_changed_is_told(swept, tmp_path):
    def another_rate(line: dict[str, Any]) -> None:
        line["experiment"]["training"]["learning_rate"] = 0.5

    path = altered(swept, tmp_path / "small.jsonl", another_rate)
    code, found = verify(path, "--only", "method=lora", "--tolerance", "0")
    assert code == 1
    assert found[LORA]["verdict"] == "different"
    assert found[LORA]["notes"] == ["the suite of this clone would make another experiment: training.learning_rate"]
    assert found[LORA]["max_logit_difference"] > 0
    code, found = verify(path, "--only", "method=lora", "--tolerance", "100")
    assert (code, found[LORA]["verdict"]) == (0, "alike")


def test_another_experiment_than_its_name_says_is_different(swept, tmp_path):
    """Though what is rerun, by the recorded experiment, is the same."""

    def another_scale(line: dict[str, Any]) -> None:
        line["experiment"]["method"]["options"] = {"lora": {"alpha": 3.0}}

    path = altered(swept, tmp_path / "small.jsonl", another_scale)
    code, found = verify(path, "--only", "method=lora", "--tolerance", "100")
    assert (code, found[LORA]["verdict"]) == (1, "different")
    assert found[LORA]["reasons"] == ["method.options.lora of the experiment"]


def test_predictions_of_other_images_with_the_same_metrics(swept):
    record = read(swept).runs[LORA]
    assert isinstance(record, CellRecord)
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 1000)
    logits = generator.normal(size=(2000, 2)) + np.eye(2)[labels]
    shuffled = logits[np.concatenate([generator.permutation(1000), 1000 + generator.permutation(1000)])]
    rounded = logits + generator.normal(size=logits.shape, scale=0.1)
    site = np.zeros(2000, np.uint16)
    before, moved, close = (
        record.model_copy(update={"predictions": Predictions(["site-1"], one.astype(np.float16), labels, site)})
        for one in (logits, shuffled, rounded)
    )
    found = rerun._compared(before, moved, [], [], 1.0)
    assert (found.verdict, found.reasons) == ("different", ["predictions"])
    assert rerun._compared(before, close, [], [], 1.0).verdict == "alike"


def test_a_file_that_the_report_refuses_is_refused(swept, tmp_path, capsys):
    path = altered(swept, tmp_path / "small.jsonl", lambda line: line["final"]["test"]["pooled"].update(loss=0.01))
    assert main(["verify", str(path)]) == 1
    assert f"'{LORA}' has the final.test.pooled.loss 0.01, but its predictions give" in capsys.readouterr().err


def test_what_cannot_be_rerun_is_told(swept, tmp_path, capsys):
    def other_weights(line: dict[str, Any]) -> None:
        line["experiment"]["backbone"]["sha256"] = "0" * 64

    def other_methods(line: dict[str, Any]) -> None:
        line["suite"]["methods"] = ["linear_probe"]

    for name, alter, of, reason in (
        ("weights", other_weights, LORA, "but the experiment needs 000"),
        ("field", lambda line: line["experiment"].update(gone=1), LORA, "field 'gone' is unknown"),
        ("suite", other_methods, "small", "the suite 'small' of this clone makes no such cell"),
    ):
        path = altered(swept, tmp_path / f"{name}.jsonl", alter, of)
        path.write_text("".join(line for line in path.read_text().splitlines(True) if '"failure"' not in line))
        code, found = verify(path, "--cells", "2")
        assert code == 1
        assert found[LORA]["verdict"] == "not rerun"
        assert reason in found[LORA]["reasons"][0]
        assert found[LORA]["rerun"] is None
        assert found[POOLED]["verdict"] == "identical"
        assert "1 of 2 cells are different or could not be rerun" in capsys.readouterr().err


def test_weights_that_were_pre_trained_here_take_the_place_of_those_of_the_record(swept):
    contents = read(swept)
    record = contents.runs[LORA]
    assert isinstance(record, CellRecord)
    suite = suite_of(contents, swept)
    (plan,) = [cell for cell in Sweep(suite, swept, "reference", 0).grid(lambda _: True).runs([]) if cell.name == LORA]
    pretraining = Pretraining(data={"source": "lesions", "classes": ["a", "b"]})
    model = InitialModel(backbone={"name": "x"}, weights="x", pretraining=pretraining)
    pretrained = suite.model_copy(update={"backbones": {"embedded": model}})
    other = {**record.experiment, "backbone": {**plan.experiment.backbone.model_dump(mode="json"), "sha256": "0" * 64}}
    cell, reasons, notes = rerun._cell(record.model_copy(update={"experiment": other}), pretrained, {LORA: plan})
    assert cell.experiment == plan.experiment
    assert reasons == []
    assert notes == ["starts from weights that were pre-trained here, which are not those of the record"]


@pytest.mark.parametrize("compiled", [False, True])
def test_it_compiles_what_was_compiled(swept, compiled):
    contents = read(swept)
    suite, record = suite_of(contents, swept), contents.runs[LORA]
    assert isinstance(record, CellRecord)
    planned = {cell.name: cell for cell in Sweep(suite, swept, "reference", 0).grid(lambda _: True).runs([])}
    cell, _, _ = rerun._cell(record.model_copy(update={"compiled": compiled}), suite, planned)
    assert cell.site.compile is compiled


def test_each_engine_runs_what_it_is_asked_for(swept, monkeypatch):
    """By default what it ran before."""
    contents = read(swept)
    asked = []

    def run(cell, engine, verify):
        asked.append((cell.name, cell.baseline, engine, verify))
        return contents.runs[cell.name]

    monkeypatch.setattr(rerun, "run_cell", run)
    for engine in (None, "flare"):
        compared = rerun.compare(suite_of(contents, swept), contents, draw(contents, 1, 0, _is_lora), engine, 0)
        assert [one.verdict for one in compared] == ["identical"]
    assert asked == [(LORA, None, "reference", False), (LORA, None, "flare", False)]


def _is_lora(axes: dict[str, object]) -> bool:
    return axes["method"] == "lora"


def test_another_precision_is_told(swept):
    record = read(swept).runs[LORA]
    assert isinstance(record, CellRecord)
    again = record.model_copy(update={"precision": "bfloat16"})
    found = rerun._compared(record, again, [], ["a note"], 0)
    assert found.notes == ["a note", "computed in bfloat16 here, in float32 there"]
    assert rerun._compared(record.model_copy(update={"precision": None}), again, [], [], 0).notes == []


def test_the_draw(swept):
    contents = read(swept)
    assert {run.name for run in draw(contents, 9, 0, lambda _: True)} == {LORA, POOLED}
    firsts = [draw(contents, 1, seed, lambda _: True)[0].name for seed in range(20)]
    assert set(firsts) == {LORA, POOLED}
    assert firsts == [draw(contents, 1, seed, lambda _: True)[0].name for seed in range(20)]
    assert [run.name for run in draw(contents, 9, 0, lambda axes: axes["method"] == "pooled")] == [POOLED]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "0"], "--cells is 0; at least 1 would be right."),
        (["--tolerance", "101"], "--tolerance is 101; percentage points from 0 to 100 would be right."),
        (["--tolerance", "nan"], "--tolerance is nan; percentage points from 0 to 100 would be right."),
        (["--only", "method=lra"], "--only: the suite has no method 'lra'"),
        (["--only", "method=linear_probe"], "has no finished cell or baseline with all of these values."),
        (["--out", "."], "--out: . is a folder"),
    ],
)
def test_what_is_refused(swept, capsys, options, said):
    assert main(["verify", str(swept), *options]) == 1
    assert said in capsys.readouterr().err


def test_this_clones_suite_comes_first(swept):
    contents = read(swept)
    contents.suite = SuiteRecord(name="smoke", suite={})
    assert suite_of(contents, swept) == Suite.read("smoke")
