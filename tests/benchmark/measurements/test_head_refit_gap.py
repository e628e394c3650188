"""The comparison is of the folds that all have, in pairs."""

import json

import numpy as np
import pytest

from benchmark.measurements.head_refit_gap import main


def result(path, trained_by, values, **settings):
    """A file of head_refit: by fold the balanced accuracy with the trained classifier and with the solved one."""
    rest = {"accuracy": 0.5, "auroc": 0.9}
    folds = []
    for fold, (trained, ridge) in values.items():
        values_by_way = {"trained": trained, "ridge, validation": ridge}
        ways = {way: {"balanced_accuracy": value, **rest} for way, value in values_by_way.items()}
        folds.append({"fold": fold, "commit": "abc", "ways": ways})
    settings = {"method": "lora", "rounds": 12, "trained_by": trained_by, "fields": [], **settings}
    path.write_text(json.dumps({"settings": settings, "folds": folds}))
    return str(path)


def test_it_compares_in_pairs_the_folds_that_all_have(tmp_path):
    ours = result(tmp_path / "a.json", "federation", {1: (0.60, 0.64), 2: (0.70, 0.72), 3: (0.1, 0.1)})
    local = result(tmp_path / "b.json", "local", {1: (0.50, 0.52), 2: (0.62, 0.60)})
    pooled = result(
        tmp_path / "c.json", "pooled", {2: (0.73, 0.75), 1: (0.66, 0.65)}, fields=["training.learning_rate=0.001"]
    )
    other = result(
        tmp_path / "d.json", "federation", {1: (0.54, 0.6), 2: (0.62, 0.6)}, fields=["training.imbalance=none"]
    )
    out = tmp_path / "out.json"
    assert main([ours, pooled, local, other, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["folds"] == [1, 2]
    means = {(row["trained_by"], row["way"]): row["balanced_accuracy"] for row in found["means"]}
    assert [*means] == [
        (name, way)
        for name in ("federation", "pooled", "local", "federation, training.imbalance=none")
        for way in ("trained", "ridge, validation")
    ]
    assert means["pooled", "ridge, validation"] == pytest.approx(0.70)
    ahead = {(row["trained_by"], row["way"], row["metric"]): row for row in found["differences"]}
    assert len(ahead) == 7 * 3, "none of the federation's ridge classifier against itself"
    half = 12.706 * np.std([-0.01, -0.03], ddof=1) / np.sqrt(2)
    one = ahead["pooled", "ridge, validation", "balanced_accuracy"]
    assert [one["ahead"], one["low"], one["high"]] == pytest.approx([-0.02, -0.02 - half, -0.02 + half], abs=1e-4)
    assert ahead["local", "trained", "balanced_accuracy"]["ahead"] == pytest.approx(0.12)
    assert ahead["local", "trained", "auroc"]["ahead"] == 0
    without = ahead["federation, training.imbalance=none", "trained", "balanced_accuracy"]
    assert without["ahead"] == pytest.approx(0.1)
    assert found["sources"]["pooled"]["fields"] == ["training.learning_rate=0.001"]


def test_files_that_cannot_be_compared_are_refused(tmp_path, capsys):
    ours = result(tmp_path / "a.json", "federation", {1: (0.6, 0.6)})
    pooled = result(tmp_path / "b.json", "pooled", {2: (0.6, 0.6)})
    short = result(tmp_path / "c.json", "local", {1: (0.6, 0.6)}, rounds=3)
    for files, said in {
        (pooled, ours): "The files are of pooled, federation; the federation's first, and others by who trains or by",
        (ours, ours): "The files are of federation, federation; the federation's first",
        (ours, short): "The files differ in 'rounds'",
        (ours, pooled): "The files have no fold in common",
    }.items():
        assert main([*files]) == 1
        assert said in capsys.readouterr().err
    (tmp_path / "gap.json").write_text(json.dumps({"folds": [1, 2]}))
    assert main([ours, str(tmp_path / "gap.json")]) == 1
    assert "gap.json: is no result of head_refit (" in capsys.readouterr().err
