"""Folds are named, and differences are paired by fold, to baselines of the same variant."""

import json

import numpy as np
import pytest
from report_suites import change, lines_of, of_one_class, write_suite
from scipy.stats import ttest_rel

from benchmark.__main__ import main
from benchmark.report.baselines import baseline_tests
from benchmark.report.blocks import NONE, Table
from benchmark.report.panels import Panel, panels
from benchmark.report.results import Results, read_results
from benchmark.report.tables import gap_table, main_table


@pytest.fixture
def path(tmp_path):
    """Three methods and baselines in two variants, in folds 1, 2 and 4 of five."""
    return write_suite(
        tmp_path / "folds.jsonl",
        methods=("linear_probe", "lora", "full"),
        seeds=(1, 2, 4),
        images=80,
        variants=("none", "weighted_loss"),
        folds=5,
    )


def table_of(results: Results, variant: str) -> tuple[Panel, Table]:
    (panel,) = [one for one in panels(results, 10) if one.key.variant == variant]
    table = gap_table(panel, "imagenet", results.baselines)
    assert table
    return panel, table


def test_folds_are_named(path, tmp_path):
    results = read_results(path)
    panel, gaps = table_of(results, "none")
    table = main_table(panel, "imagenet", results.baselines)
    assert table.header[-1] == gaps.header[-1] == "folds"
    assert {row[-1].text for row in [*table.rows, *gaps.rows]} == {"1, 2, 4"}
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "interval over folds" in report
    assert "over 3 methods and 3 folds" in report


def test_differences_are_paired_by_fold(path):
    change(path, lambda baseline: baseline["axes"]["seed"] == 4, kind="baseline")
    lines = lines_of(path)
    results = read_results(path)
    for variant in ("none", "weighted_loss"):
        _, table = table_of(results, variant)
        assert [text for text in table.header if text.startswith("balanced")] == [
            f"balanced accuracy less {other}" for other in ("pooled", "the best site alone", "full")
        ]
        cells, rows = (
            {
                (line["axes"]["method"], line["axes"]["seed"]): line
                for line in lines
                if line["kind"] == kind and line["axes"]["variant"] == variant
            }
            for kind in ("cell", "baseline")
        )

        pooled = {seed: reached(rows["pooled", seed]["rows"][0]["test"]) for seed in (1, 2)}
        alone = {
            seed: max(reached(row["test"]) for row in rows["pooled", seed]["rows"] if row["name"].startswith("local"))
            for seed in (1, 2)
        }
        by_method = {
            method: {seed: reached(cells[method, seed]["final"]["test"]) for seed in (1, 2, 4)}
            for method in ("lora", "full")
        }
        _, lora, full = table.rows
        assert [lora[column].text for column in (1, 3, 5)] == [
            difference(by_method["lora"], other) for other in (pooled, alone, by_method["full"])
        ]
        assert full[5].text == "+0.0 [+0.0, +0.0]"


def difference(these: dict[int, float], those: dict[int, float]) -> str:
    """In points, over the folds of `those`."""
    mine, others = ([100 * values[seed] for seed in those] for values in (these, those))
    low, high = ttest_rel(mine, others).confidence_interval()
    return f"{np.mean(mine) - np.mean(others):+.1f} [{low:+.1f}, {high:+.1f}]"


def reached(test: dict) -> float:
    return test["pooled"]["balanced_accuracy"]


def test_baselines_of_another_objective_do_not_stand_beside_a_panel(path):
    change(path, lambda baseline: baseline["axes"]["variant"] == "none", kind="baseline")
    results = read_results(path)
    panel, table = table_of(results, "none")
    assert not baseline_tests(panel, "imagenet", results.baselines)
    assert table.header[1:-1] == ["balanced accuracy less full", "AUROC less full"]
    panel, _ = table_of(results, "weighted_loss")
    assert next(iter(baseline_tests(panel, "imagenet", results.baselines))) == "pooled"


def test_without_anything_to_compare_with_there_is_no_table_of_differences(tmp_path):
    results = read_results(write_suite(tmp_path / "one.jsonl", methods=("lora",), images=60, baselines=False))
    (panel,) = panels(results, 10)
    assert gap_table(panel, "imagenet", results.baselines) is None


def test_an_undefined_metric_has_no_difference(path):
    change(path, of_one_class, only=".1")
    _, table = table_of(read_results(path), "none")
    assert table.rows[0][2].text == NONE


def test_folds_of_another_number_are_refused(path, tmp_path, capsys):
    change(path, lambda cell: cell["experiment"]["data"]["fold"].update(of=4), only="none.lora.1")
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "has another 'data' than that of" in capsys.readouterr().err
    assert json.loads(path.read_text().splitlines()[0])["kind"] == "suite"
