"""The table of what a suite's variants reach."""

import numpy as np
from report_suites import write_suite
from scipy.stats import ttest_rel

from benchmark.report.blocks import NONE
from benchmark.report.panels import panels
from benchmark.report.results import read_results
from benchmark.report.variants import variant_tables


def test_a_row_a_variant(tmp_path):
    results = read_results(
        write_suite(tmp_path / "suite.jsonl", methods=("lora", "full"), images=60, variants=("median", "default"))
    )
    lora, full = variant_tables(panels(results, 10))
    assert "imagenet, lora" in lora.caption
    assert "imagenet, full" in full.caption
    assert lora.header[4] == "balanced accuracy less default (points)"
    reached, others = (
        [
            100 * cell.final.test.pooled.balanced_accuracy
            for cell in results.cells
            if (cell.axes.method, cell.axes.variant) == ("lora", variant)
        ]
        for variant in ("median", "default")
    )
    default, median = lora.rows
    assert (default[0].text, default[4].text, median[0].text) == ("default", NONE, "median")
    assert median[2].text.startswith(f"{sum(reached) / 3:.1f} ± ")
    difference = ttest_rel(reached, others)
    low, high = difference.confidence_interval()
    assert median[4].text == f"{np.mean(reached) - np.mean(others):+.1f} [{low:+.1f}, {high:+.1f}]"
    assert [entry.text for entry in median[5:]] == [
        f"{min(reached):.1f} {NONE} {max(reached):.1f}",
        "0.72",
        "0.72",
        "3",
    ]


def test_one_variant_has_no_table(tmp_path):
    assert (
        variant_tables(panels(read_results(write_suite(tmp_path / "suite.jsonl", images=60, methods=("lora",))), 10))
        == []
    )
