"""What is refused, and how."""

import json
import shutil

import numpy as np
import pytest
from report_suites import write_suite

from benchmark.__main__ import main


@pytest.fixture
def small(tmp_path):
    """Four cells."""
    return write_suite(tmp_path / "small", methods=("lora", "full"), seeds=(0, 1), images=60)


def refusal(folder, capsys, *arguments: str) -> str:
    slopes = folder.parent / "slopes.json"
    before = sorted(folder.rglob("*"))
    assert main(["report", str(folder), "--slopes", str(slopes), *arguments]) == 1
    assert sorted(folder.rglob("*")) == before and not slopes.exists(), "something was written"
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def first(folder, kind: str = "json"):
    return sorted((folder / "cells").glob(f"*.{kind}"))[0]


def change(path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_folder_that_is_not_there_or_has_no_cells(tmp_path, capsys):
    assert "no is not a folder" in refusal(tmp_path / "no", capsys)
    (tmp_path / "empty").mkdir()
    assert "has no cells" in refusal(tmp_path / "empty", capsys)


def test_damaged_files_are_named(small, capsys):
    path = first(small)
    whole = path.read_text()
    path.write_text(whole[:100])
    assert f"{path}: is not valid JSON" in refusal(small, capsys)
    path.write_text(whole)
    change(path, final=None)
    assert f"{path}: " in (error := refusal(small, capsys))
    assert "a finished cell has 'final'" in error
    path.write_text(whole)
    change(path, status="running")
    assert "field 'status' is \"running\"" in refusal(small, capsys)
    path.write_text(whole)
    (small / "tuning.json").write_text("{}")
    assert "tuning.json: is not a list" in refusal(small, capsys)
    search = {"axes": json.loads(whole)["axes"], "budget": 1, "trials": [], "chosen": 3}
    (small / "tuning.json").write_text(json.dumps([search]))
    assert "tuning.json, entry 0: " in (error := refusal(small, capsys))
    assert "'chosen' is 3" in error
    (small / "tuning.json").unlink()
    (small / "baselines" / "odd.json").write_text("[]")
    assert "odd.json: " in refusal(small, capsys)


def test_predictions_that_do_not_fit(small, capsys):
    path = first(small, "npz")
    whole = path.read_bytes()
    arrays = dict(np.load(path))
    path.unlink()
    assert f"{path}: is missing" in refusal(small, capsys)
    path.write_bytes(whole[:200])
    assert f"{path}: cannot be read" in refusal(small, capsys)
    np.savez(path, logits=arrays["logits"], labels=arrays["labels"])
    assert "cannot be read as logits, labels and site" in refusal(small, capsys)
    np.savez(path, **{name: array[:-1] for name, array in arrays.items()})
    assert "do not fit the 60 test images" in refusal(small, capsys)
    np.savez(path, **{**arrays, "logits": np.full_like(arrays["logits"], np.nan)})
    assert "logits are not all finite" in refusal(small, capsys)
    np.savez(path, **{**arrays, "labels": arrays["labels"][::-1]})
    assert "its labels are not those of" in (error := refusal(small, capsys))
    assert ".npz" in error


def test_metrics_that_the_logits_do_not_give(small, capsys):
    path = first(small)
    cell = json.loads(path.read_text())
    for value, said in (
        (0.999, "balanced_accuracy is 0.999, but "),
        (7.0, "is 7.0: input should be less than"),
        (None, "is null"),
    ):
        cell["final"]["test"]["pooled"]["balanced_accuracy"] = value
        path.write_text(json.dumps(cell))
        assert said in (error := refusal(small, capsys))
        assert str(path) in error


def test_cells_of_different_settings(small, capsys):
    path = first(small)
    experiment = json.loads(path.read_text())["experiment"]
    change(path, experiment={**experiment, "federation": {"rounds": 20}})
    assert "its experiment has another 'federation' than that of" in refusal(small, capsys)


def test_engines_that_differ(small, capsys):
    change(first(small), verification={"engine": "flare", "max_difference": 5.0})
    assert "field 'verification.max_difference' is 5.0" in refusal(small, capsys)


def test_two_cells_for_one_place(small, capsys):
    path = first(small)
    copy = path.with_name("zz.json")
    copy.write_text(path.read_text())
    shutil.copy(path.with_suffix(".npz"), copy.with_suffix(".npz"))
    assert "zz.json: has the same axes as " in refusal(small, capsys)


def test_options_and_slopes_that_make_no_sense(small, capsys):
    assert "--target is 95" in refusal(small, capsys, "--target", "95")
    slopes = small / "other.json"
    slopes.write_text('{"a": 1}')
    assert "other.json: is not a list of fits" in refusal(small, capsys, "--slopes", str(slopes))
    missing = small / "no" / "slopes.json"
    assert "is not a folder" in refusal(small, capsys, "--slopes", str(missing))
