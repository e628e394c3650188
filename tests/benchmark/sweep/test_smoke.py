"""The smallest suite as a user runs it: FLARE's simulator, then the report."""

import json

import numpy as np

from benchmark.__main__ import main


def test_smoke(tmp_path):
    out, slopes = tmp_path / "smoke", tmp_path / "slopes.json"
    assert main(["run", "smoke", "--jobs", "2", "--verify", "1", "--out", str(out)]) == 0
    assert main(["report", str(out), "--slopes", str(slopes)]) == 0
    cells = [json.loads(path.read_text()) for path in (out / "cells").glob("*.json")]
    assert {cell["axes"]["method"]: cell["status"] for cell in cells} == {
        "lora": "finished",
        "linear_probe": "finished",
    }
    assert {cell["engine"] for cell in cells} == {"flare"}
    (verified,) = [cell["verification"] for cell in cells if cell["verification"]]
    assert verified["engine"] == "reference"
    assert verified["max_difference"] <= 1e-6
    assert len(list((out / "tuning").glob("*.json"))) == 4
    assert len(list((out / "baselines").glob("*.json"))) == 2
    sizes = np.log10([cell["exchanged_parameters"] for cell in cells])
    for entry in json.loads(slopes.read_text()):
        values = [100 * cell["final"]["test"]["pooled"][entry["metric"]] for cell in cells]
        assert np.isclose(entry["slope_points_per_decade"], np.polyfit(sizes, values, 1)[0])
        assert entry["ci_low"] <= entry["slope_points_per_decade"] <= entry["ci_high"]
    assert "linear\\_probe" in (out / "report.md").read_text()
    assert "<svg" in (out / "report.html").read_text()
