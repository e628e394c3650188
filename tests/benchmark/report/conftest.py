"""Suites that are only read."""

from pathlib import Path

import pytest
from report_suites import write_suite

from benchmark.__main__ import main
from benchmark.report.panels import Panel, panels
from benchmark.report.results import read_results

PANELS = (("in-domain", "cifar10", "iid", 0.0), ("out-of-domain", "ham10000", "natural", 6.0))


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> Path:
    """Two panels, two backbones, five methods, three seeds."""
    backbones = (("imagenet", 0.55), ("lesions", 0.65))
    return write_suite(tmp_path_factory.mktemp("results") / "paper.jsonl", panels=PANELS, backbones=backbones)


@pytest.fixture(scope="session")
def suite_panels(suite) -> list[Panel]:
    """Those of `suite`."""
    return panels(read_results(suite), 1000)


@pytest.fixture(scope="session")
def written(suite, tmp_path_factory) -> Path:
    """The folder of a report on `suite`."""
    out = tmp_path_factory.mktemp("out") / "report"
    assert main(["report", str(suite), "--out", str(out)]) == 0
    return out
