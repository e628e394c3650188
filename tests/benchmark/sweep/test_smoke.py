"""The smallest suite as a user runs it: FLARE's simulator, then the report."""

import json

import numpy as np
import pytest

from benchmark.__main__ import main
from benchmark.sweep.records import BaselineRecord, CellRecord, TrialRecord, metric_of
from benchmark.sweep.result_file import read


@pytest.mark.slow
def test_smoke(tmp_path):
    path, out = tmp_path / "smoke.jsonl", tmp_path / "report"
    assert main(["run", "smoke", "--jobs", "2", "--verify", "1", "--out", str(path)]) == 0
    assert main(["report", str(path), "--out", str(out)]) == 0
    runs = read(path).runs.values()
    cells = [run for run in runs if isinstance(run, CellRecord)]
    assert sorted(cell.axes.method for cell in cells) == ["linear_probe", "lora"]
    assert {run.engine for run in runs} == {"flare"}
    (verified,) = [cell.verification for cell in cells if cell.verification]
    assert verified.engine == "reference"
    assert verified.max_difference <= 1e-6
    assert sum(isinstance(run, TrialRecord) for run in runs) == 4
    assert sum(isinstance(run, BaselineRecord) for run in runs) == 2
    assert len(runs) == 8
    assert path.stat().st_size < 100_000
    sizes = np.log10([cell.exchanged_parameters for cell in cells])
    for entry in json.loads((out / "slopes.json").read_text()):
        values = [100 * (metric_of(cell.final.test.pooled, entry["metric"]) or 0) for cell in cells]
        assert np.isclose(entry["slope_points_per_decade"], np.polyfit(sizes, values, 1)[0])
        low, high = entry["interval_over_seeds"] or (-np.inf, np.inf)
        assert low <= entry["slope_points_per_decade"] <= high
    assert "linear\\_probe" in (out / "report.md").read_text()
    assert "<svg" in (out / "report.html").read_text()
