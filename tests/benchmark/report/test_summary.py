"""``python -m benchmark summary``: what suites found, for ``pt-peft advise``."""

import json
import subprocess

import pytest
from report_suites import change, lines_of, write_suite
from scipy.stats import ttest_rel

from benchmark.__main__ import main
from benchmark.commands.run import RESULTS
from pt_peft.commands.measured import PACKAGED, Measurements
from pt_peft.schema import read


def test_a_line_a_method_and_variant(tmp_path):
    path = write_suite(
        tmp_path / "suite.jsonl", methods=("lora", "full"), seeds=(1, 2, 3), images=80, folds=5,
        variants=("balanced_softmax", "weighted_loss"),
    )  # fmt: skip
    fields = {"federation": {"rounds": 3}, "backbone": {"image_size": 96}}
    for kind in ("cell", "baseline"):
        change(path, lambda line: line["experiment"].update(fields), kind=kind)
    assert main(["summary", str(path), "--out", str(tmp_path / "out.json")]) == 0
    found = {(one.method, one.variant): one for one in read(Measurements, tmp_path / "out.json").measured}
    assert len(found) == 4
    lora = found["lora", "balanced_softmax"]
    assert (lora.rounds, lora.image_size, lora.folds, lora.imbalance) == (3, 96, True, "balanced_softmax")
    assert lora.less.keys() == {"pooled", "the best site alone", "full", "variant weighted_loss"}
    reached = {
        variant: [
            100 * line["final"]["test"]["pooled"]["balanced_accuracy"]
            for line in lines_of(path)
            if line["kind"] == "cell" and (line["axes"]["method"], line["axes"]["variant"]) == ("lora", variant)
        ]
        for variant in ("balanced_softmax", "weighted_loss")
    }
    difference, (one, other) = lora.less["variant weighted_loss"], reached.values()
    assert difference.mean == pytest.approx((sum(one) - sum(other)) / 3, abs=1e-3)
    assert (difference.low, difference.high) == pytest.approx(
        tuple(ttest_rel(one, other).confidence_interval()), abs=1e-3
    )
    assert difference.runs == 3


def test_a_file_does_not_overwrite_what_comes_with_the_package(capsys):
    before = PACKAGED.read_bytes()
    assert main(["summary", "mine.jsonl"]) == 1
    assert "--out is missing" in capsys.readouterr().err
    assert PACKAGED.read_bytes() == before


def test_what_comes_with_the_package_is_what_the_results_say(tmp_path):
    """If not: python -m benchmark summary. A sweep may be adding results that are not committed yet."""
    status = ["git", "-C", str(RESULTS), "status", "--porcelain", "--", "*.jsonl"]
    if subprocess.run(status, capture_output=True, text=True).stdout:
        pytest.skip("benchmark/results has results of suites that are not committed")
    if not any(RESULTS.glob("*.jsonl")):
        assert json.loads(PACKAGED.read_text()) == {"measured": []}
        return
    assert main(["summary", "--out", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(PACKAGED.read_text())
