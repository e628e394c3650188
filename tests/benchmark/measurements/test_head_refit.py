"""The ways to solve a classifier anew are what they say on made-up features."""

import json

import numpy as np
import pytest

from benchmark.measurements import head_refit
from benchmark.measurements.head_refit import Fold, Images, summary, towards, ways
from pt_peft.commands.dispatch import ExitCode
from pt_peft.presets import HAM10000_PENALTIES
from pt_peft.statistics.closed_form import LinearHead, candidates
from pt_peft.statistics.moments import class_counts, class_weights, moments

CLASSES, WIDTH = 3, 5


def made_up(seed, count=200):
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, count, p=[0.7, 0.2, 0.1])
    features = 2 * np.eye(CLASSES, WIDTH)[labels] + rng.normal(size=(count, WIDTH))
    return Images(np.array_split(features, 2), np.array_split(labels, 2))


def test_towards_zero_it_is_the_ridge_head_and_with_a_large_penalty_the_trained_one():
    train = made_up(0)
    weights = class_weights(class_counts(train.labels, CLASSES))
    nothing = LinearHead(np.full((CLASSES, WIDTH), 1e-9) * np.eye(CLASSES, WIDTH), np.zeros(CLASSES))
    ridge = candidates("ridge", moments(train.features, train.labels, CLASSES, weights), weights, [0.1])[0]
    direction = LinearHead(ridge.weight * 7, np.zeros(CLASSES))
    [near] = towards(direction, train, weights, [1e6])
    cosine = (near.weight * ridge.weight).sum() / np.linalg.norm(near.weight) / np.linalg.norm(ridge.weight)
    assert cosine == pytest.approx(1, abs=1e-9)
    small = [towards(one, train, weights, [1e-9])[0] for one in (nothing, direction)]
    free = candidates("ridge", moments(train.features, train.labels, CLASSES, weights), weights, [1e-9])[0]
    for one in small:
        np.testing.assert_allclose(one.logits(train.features), free.logits(train.features), atol=1e-6)


def test_every_way_beats_a_head_that_says_nothing():
    train, val, test = made_up(0), made_up(1), made_up(2)
    trained = LinearHead(np.random.default_rng(3).normal(size=(CLASSES, WIDTH)), np.zeros(CLASSES))
    found = ways(trained, train, val)
    assert len(found) == 9
    start = test.score(trained.logits(test.features))["balanced_accuracy"]
    for name, (head, penalty) in found.items():
        if name != "trained":
            assert test.score(head.logits(test.features))["balanced_accuracy"] > max(start, 0.5), name
            assert penalty > 0
    assert found["ridge, validation"][1] in HAM10000_PENALTIES


def fold(number, trained, other) -> Fold:
    rest = {"accuracy": 0.5, "auroc": 0.9}
    scores = {"trained": {"balanced_accuracy": trained, **rest}, "other": {"balanced_accuracy": other, **rest}}
    return {"fold": number, "commit": "abc", "ways": scores, "penalties": {}, "alone": None}


def test_the_summary_is_over_folds():
    rows = summary([fold(1, 0.6, 0.65), fold(2, 0.7, 0.71)])
    assert rows[1]["balanced_accuracy"] == pytest.approx(0.68)
    assert rows[1]["difference"] == pytest.approx(0.03)
    half = 12.706 * np.std([0.05, 0.01], ddof=1) / np.sqrt(2)
    assert [rows[1]["low"], rows[1]["high"]] == pytest.approx([0.03 - half, 0.03 + half], abs=1e-4)
    assert summary([fold(1, 0.6, 0.65)])[1]["low"] is None


def test_it_goes_on_after_the_last_fold_and_takes_no_other_settings(shared, tmp_path, monkeypatch, capsys):
    asked = []

    def measured(settings, number, commit):
        if number == 3 and asked == [1, 2]:
            asked.clear()
            raise KeyboardInterrupt
        asked.append(number)
        return fold(number, 0.6, 0.6 + number / 100)

    monkeypatch.setattr(head_refit, "measured", measured)
    out = tmp_path / "out.json"
    assert head_refit.main(["--out", str(out)]) == ExitCode.INTERRUPTED
    assert head_refit.main(["--out", str(out)]) == 0
    assert asked == [3]
    kept = json.loads(out.read_text())
    assert [one["fold"] for one in kept["folds"]] == [1, 2, 3]
    assert kept["summary"][1]["difference"] == pytest.approx(0.02)
    capsys.readouterr()
    assert head_refit.main(["--trained-by", "pooled", "--out", str(out)]) == ExitCode.MISTAKE
    assert "has runs of 'trained_by' federation, not pooled; another --out would be right" in capsys.readouterr().err
