"""The reliability of probabilities at another prevalence, on made-up runs of which the right answer is known."""

import json

import numpy as np
import pytest

from benchmark.measurements.prevalence import WAYS, curve, main
from benchmark.oracle.predictions import Predictions

COUNTS = {"north": [700, 250, 50], "south": [100, 100, 800]}
AXES = {"data": "ham10000", "partition": "natural", "method": "lora_vpt"}


def cell(seed, **changes):
    """Logits log p(x | c) of two sites of other prevalences."""
    draw = np.random.default_rng(seed)
    site = np.arange(4000) % 2
    shares = np.array([*COUNTS.values()]) / 1000
    labels = np.array([draw.choice(3, p=shares[place]) for place in site])
    logits = 1.5 * (1.5 * np.eye(3)[labels] + draw.normal(size=(4000, 3)))
    predictions = Predictions([*COUNTS], logits.astype(np.float16), labels, site.astype(np.uint16))
    return {
        "kind": "cell", "name": f"run.{seed}", "axes": {**AXES, "seed": seed}, "class_counts": COUNTS,
        "experiment": {"training": {"imbalance": "balanced_softmax"}}, "provenance": {"commit": "c0ffee"},
        "predictions": predictions.pack(), **changes,
    }  # fmt: skip


def test_the_right_prevalence_is_reliable(tmp_path, capsys):
    path, out = tmp_path / "suite.jsonl", tmp_path / "prevalence.json"
    others = [cell(5, class_counts=None), cell(6, experiment={"training": {}}), {"kind": "suite"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in [cell(2), *others, cell(1)]))
    assert main(["--results", str(path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["runs"], found["commits"], found["images"]) == (["run.1", "run.2"], ["c0ffee"], 8000)
    rows = {one["name"]: one for one in found["rows"]}
    assert tuple(rows) == WAYS
    loss = {name: one["metrics"]["loss"]["mean"] for name, one in rows.items()}
    assert loss["own"] == pytest.approx(loss["em"], abs=0.01)
    assert loss["own"] < min(loss["as trained"], loss["federation"], loss["em, together"]) - 0.05
    assert rows["own"]["metrics"]["ece"]["most"] < 0.02
    assert rows["own"]["metrics"]["accuracy"]["mean"] > rows["federation"]["metrics"]["accuracy"]["least"]
    assert rows["own"]["worst_ece"]["most"] < 0.03
    assert rows["own"]["distance"]["most"] < 0.03
    assert rows["em"]["distance"]["most"] < 0.03 < rows["federation"]["distance"]["least"]
    assert sum(one["images"] for one in rows["em"]["curve"]) == 8000
    assert "| as trained | 0." in capsys.readouterr().out


def test_what_is_refused(tmp_path, capsys):
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps(cell(1)) + "\n")
    assert main(["--results", str(path), "--method", "full"]) == 1
    assert "has no finished run of data ham10000, partition natural, method full" in capsys.readouterr().err
    assert main(["--results", str(tmp_path / "none.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_curve():
    found = curve(np.array([0.61, 0.65, 0.95]), np.array([True, False, True]))
    assert found == [
        {"images": 2, "confidence": pytest.approx(0.63), "accuracy": 0.5},
        {"images": 1, "confidence": 0.95, "accuracy": 1.0},
    ]
