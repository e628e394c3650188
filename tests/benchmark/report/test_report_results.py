"""What is refused, and how."""

import base64
import io
import json

import numpy as np
import pytest
from report_suites import change, lines_of, write_suite

from benchmark.__main__ import main
from benchmark.oracle.predictions import Predictions

FIRST = "full.0"
"""Ends the name of a cell that is altered."""


@pytest.fixture
def small(tmp_path):
    """Four cells."""
    return write_suite(tmp_path / "small.jsonl", methods=("lora", "full"), seeds=(0, 1), images=60)


@pytest.fixture
def refusal(tmp_path, capsys):
    def refusal(path, *arguments: str) -> str:
        assert main(["report", str(path), "--out", str(tmp_path / "out"), *arguments]) == 1
        assert not (tmp_path / "out").exists(), "something was written"
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return refusal


def test_a_file_that_is_not_there_or_has_no_cells(small, tmp_path, refusal):
    assert "no.jsonl: cannot be read (No such file or directory)" in refusal(tmp_path / "no.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "folder.jsonl: cannot be read (Is a directory)" in refusal(tmp_path / "folder.jsonl")
    change(small, lambda cell: True)
    assert "small.jsonl: has no cells; run the suite first" in refusal(small)


def test_a_damaged_line_is_named(small, refusal):
    change(small, lambda cell: cell.pop("final") and None, only=FIRST)
    number = 1 + next(index for index, line in enumerate(lines_of(small)) if FIRST in line.get("name", ""))
    assert f"{small}, line {number}: field 'final' is missing" in refusal(small)


def test_a_choice_of_a_trial_that_is_not_there(small, refusal):
    change(small, lambda choice: choice.update(chosen=3), "choice")
    assert "'chosen' is 3, but there are 3 trials" in refusal(small)


@pytest.mark.parametrize(
    ("kind", "alter", "said"),
    [
        ("choice", lambda line: line.update(chosen=2), "has 'chosen' 2, but by its values of validation 1 would be"),
        ("choice", lambda line: line["trials"][1].update(val=0.7), "has the val 0.7 for its trial 1, but"),
        (
            "choice",
            lambda line: line["trials"][1].update(learning_rate=2e-3),
            "has the learning_rate 0.002 for its tri",
        ),
        (
            "choice",
            lambda line: line["trials"][1].update(learning_rate=1e-3 + 1e-8),
            "has the learning_rate 0.00100001",
        ),
        (
            "choice",
            lambda line: line["trials"][1].update(options={"lora": {"rank": 8}}),
            "has the method.options.lora.rank None, but its trials chose 8; rerun it",
        ),
        ("trial", lambda line: line["name"].endswith("-0"), "has the value 0.4 for its trial 0, of which there is no"),
        (
            "trial",
            lambda line: line["val"]["pooled"].update(balanced_accuracy=0.1),
            "but 'cifar10.iid.imagenet.default",
        ),
        (
            "cell",
            lambda line: line["experiment"]["training"].update(learning_rate=1e-2),
            "has the training.learning_rate 0.01, but its trials chose 0.001; rerun it",
        ),
    ],
)
def test_what_trials_chose_is_what_is_run(small, refusal, kind, alter, said):
    """Nobody may choose a rate by test images, and say that trials did."""
    change(small, alter, kind)
    assert said in refusal(small)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_predictions_that_do_not_fit(small, refusal):
    (line,) = [line for line in lines_of(small) if line["kind"] == "cell" and FIRST in line["name"]]
    whole = Predictions.unpack(line["predictions"])

    def put(value: str) -> None:
        change(small, lambda cell: cell.update(predictions=value), only=FIRST)

    def put_arrays(**arrays: np.ndarray) -> None:
        fields = {"logits": whole.logits, "labels": whole.labels, "site": whole.site, **arrays}
        put(Predictions(whole.sites, **fields).pack())

    put("no base64")
    assert "field 'predictions' is \"no base64\": cannot be read as an .npz" in refusal(small)
    put(base64.b64encode(base64.b64decode(line["predictions"])[:200]).decode())
    assert "cannot be read as an .npz of sites, logits, labels and site" in refusal(small)
    put(base64.b64encode(_npy(whole.logits)).decode())
    assert "cannot be read as an .npz of sites, logits, labels and site" in refusal(small)
    put_arrays(labels=whole.labels.astype(str))
    assert "array 'labels' has dtype <U" in refusal(small)
    put_arrays(site=whole.site[:-1])
    assert "site (59,) do not fit together" in refusal(small)
    put_arrays(logits=whole.logits[:-1], labels=whole.labels[:-1], site=whole.site[:-1])
    assert "'predictions' has 59 images, but 'final.test.pooled' counts 60" in refusal(small)
    put_arrays(logits=np.full_like(whole.logits, np.nan))
    assert "logits are not all finite" in refusal(small)
    put_arrays(labels=whole.labels + 1)
    assert "labels are not within 0 to 3" in refusal(small)
    put_arrays(site=whole.site + 5)
    assert "site is not within 0 to 1" in refusal(small)
    put_arrays(labels=whole.labels[::-1], logits=whole.logits[::-1], site=whole.site[::-1])
    assert "the labels of " in (error := refusal(small))
    assert "are not those of" in error


def test_metrics_that_the_logits_do_not_give(small, refusal):
    for value, said in (
        (0.999, "balanced_accuracy 0.999, but its predictions give "),
        (7.0, "is 7.0: input should be less than"),
        (None, "is null"),
    ):
        change(
            small,
            lambda cell, value=value: cell["final"]["test"]["pooled"].update(balanced_accuracy=value),
            only=FIRST,
        )
        assert said in (error := refusal(small))
        assert str(small) in error


@pytest.mark.parametrize(
    ("where", "fields", "said"),
    [
        ("experiment", {"name": "q"}, "has the name 'q', but by its axes 'cifar10.iid.imagenet.default.full.0' would"),
        ("experiment", {"seed": 5}, "has the seed 5, but by its axes 0 would be right"),
        ("experiment.method", {"name": "lora"}, "has the method.name 'lora', but by its axes 'full' would be right"),
        ("experiment.data", {"fold": {"number": 1, "of": 5}}, "has the data.fold.number 1, but by its axes 0 would"),
        (
            "experiment.data",
            {"task": "multilabel"},
            "the predictions of 'cifar10.iid.imagenet.default.full.0' are not of",
        ),
        ("", {"rounds": []}, "has 0 rounds; the 3 of its experiment, counted from 0, would be right"),
        ("", {"exchanged_parameters": 7}, "exchanged_parameters, but 'cifar10.iid.imagenet.default.full.0' has 7"),
        ("final.test.pooled", {"auroc": None}, "has the final.test.pooled.auroc None, but its predictions give 0."),
        ("final.test.pooled", {"macro_f1": 0.99}, "has the final.test.pooled.macro_f1 0.99, but its predictions give"),
        ("final.test.pooled", {"confusion": [[1]]}, "has the final.test.pooled.confusion [[1]], but its predictions"),
        ("final.test.sites.south", {"ece": 0.0}, "has the final.test.sites.south.ece 0.0, but its predictions give"),
        ("final.test", {"sites": {}}, "but its predictions are of north, south; rerun that cell"),
    ],
)
def test_a_cell_that_contradicts_itself(small, refusal, where, fields, said):
    def alter(cell: dict) -> None:
        for part in where.split(".") if where else ():
            cell = cell[part]
        cell.update(fields)

    change(small, alter, only=FIRST)
    assert said in refusal(small)


def test_a_seed_that_is_a_copy_of_another(small, refusal):
    cells = {line["name"]: line for line in lines_of(small) if line["kind"] == "cell"}
    name = "cifar10.iid.imagenet.default.full."
    copied = {field: cells[f"{name}0"][field] for field in ("predictions", "final")}
    change(small, lambda cell: cell.update(copied), only=f"{name}1")
    assert f"'{name}1' has the logits of '{name}0' to the last bit" in refusal(small)


def test_baselines_that_contradict_themselves(small, refusal):
    def alter(line: dict) -> None:
        line["rows"][0]["test"]["pooled"]["balanced_accuracy"] = 0.99

    change(small, alter, "baseline", only="pooled.1")
    assert "pooled.1', model 'pooled': balanced_accuracy is 0.99, but what is reported beside it gives" in refusal(
        small
    )


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [("count", 29, "has the count 60 of all images, but by its sites 59"), ("accuracy", 0.0, "has the accuracy 0.")],
)
def test_sites_of_a_baseline_give_what_all_images_have(small, refusal, metric, value, said):
    def alter(line):
        line["rows"][0]["test"]["sites"]["north"][metric] = value

    change(small, alter, "baseline", only="pooled.1")
    assert said in refusal(small)


def test_cells_of_different_settings(small, refusal):
    change(small, lambda cell: cell["experiment"]["federation"].update(min_sites=1), only=FIRST)
    assert "has another 'federation' than that of" in refusal(small)


def test_engines_that_differ(small, refusal):
    change(small, lambda cell: cell["verification"].update(max_difference=5.0), only=FIRST)
    assert "field 'verification.max_difference' is 5.0" in refusal(small)


def test_two_cells_for_one_place(small, refusal):
    (cell,) = [line for line in lines_of(small) if line["kind"] == "cell" and FIRST in line["name"]]
    with small.open("a") as file:
        file.write(json.dumps({**cell, "name": "zz"}) + "\n")
    assert "'zz' has the axes of 'cifar10.iid.imagenet.default.full.0'; rerun it" in refusal(small)


def test_a_target_that_makes_no_sense(small, refusal):
    assert "--target is 95" in refusal(small, "--target", "95")
