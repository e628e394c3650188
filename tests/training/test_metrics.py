"""The metrics are scikit-learn's, on whatever classes a site happens to have."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
)

from helpers import ROOT
from pt_peft.training.metrics import _calibration_error, confusion_metrics, evaluate_predictions, log_odds

CLASSES = 5


def predictions(present: list[int], count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (count,5) better than chance, and labels among `present`."""
    random = np.random.default_rng(0)
    labels = random.choice(present, count)
    logits = random.normal(size=(count, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("present", [[0, 1, 2, 3, 4], [0, 3], [1, 2, 4]])
def test_the_values_are_scikit_learns(present):
    logits, labels = predictions(present)
    metrics = evaluate_predictions(logits, labels)
    probabilities = logits.double().softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    assert metrics["count"] == 200
    assert metrics["confusion"] == confusion_matrix(labels, predicted, labels=range(CLASSES)).tolist()
    expected = {
        "loss": log_loss(labels, probabilities, labels=range(CLASSES)),
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "balanced_accuracy": np.mean([(predicted == c)[labels == c].mean() for c in present]),
        "auroc": np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in present]),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    if len(present) == CLASSES:  # else scikit-learn warns of predictions of absent classes
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    json.dumps(metrics)


def test_the_calibration_error_is_the_mean_gap_of_confidence_and_accuracy():
    logits, labels = predictions([0, 1, 2, 3, 4])
    confidence, predicted = (part.numpy() for part in logits.softmax(dim=1).max(dim=1))
    right = predicted == labels.numpy()
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    assert evaluate_predictions(logits, labels)["ece"] == pytest.approx(sum(gaps), abs=1e-6)


def test_a_confidence_between_two_bins_is_in_the_lower():
    """Guo et al. 2017: bin m is ((m - 1) / M, m / M]. Answers of 3/15, 0.21 and 0 are in bins 3, 4 and 1."""
    confidences, right = np.array([3 / 15, 0.21, 0.0]), np.array([False, True, True])
    assert _calibration_error(confidences, right) == pytest.approx((0.2 + 0.79 + 1) / 3)
    edges = np.linspace(0, 1, 16)[1:]
    assert _calibration_error(edges, np.ones(15, bool)) == pytest.approx(np.mean(1 - edges))


def test_one_class_alone_has_no_auroc():
    logits, labels = predictions([2])
    assert evaluate_predictions(logits, labels)["auroc"] is None


def test_confident_predictions_do_not_tie():
    logits = torch.tensor([[0.0, 30.0], [0.0, 25.0], [0.0, 20.0], [0.0, 18.0]])
    assert evaluate_predictions(logits, torch.tensor([1, 1, 0, 0]))["auroc"] == 1.0


def test_ties_count_by_half():
    labels, scores = np.array([1, 0, 1, 0, 0, 1, 0]), np.array([2.0, 2.0, 1.0, 1.0, 0.0, 2.0, 2.0])
    logits = torch.tensor(np.stack([-scores, scores], axis=1))
    found = evaluate_predictions(logits, torch.tensor(labels))["class_auroc"]
    assert found == pytest.approx([roc_auc_score(labels, scores)] * 2)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), r"logits \(0, 3\) and labels \(0,\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"labels \(3,\)"),
        (torch.full((1, 3), math.nan), torch.zeros(1, dtype=torch.int64), "not finite"),
        (torch.zeros(1, 3), torch.tensor([3]), "labels 3 to 3 should be within 0 to 2"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(logits, labels)


@pytest.mark.parametrize("confusion", [np.zeros((2, 2), int), np.ones((2, 3), int), np.ones((2, 2)), np.ones(3, int)])
def test_what_is_no_confusion_matrix_is_refused(confusion):
    with pytest.raises(ValueError, match=r"confusion matrix|no images"):
        confusion_metrics(confusion)


def test_pooled_metrics_come_from_the_summed_matrices():
    logits, labels = predictions([0, 1, 2, 3, 4])
    halves = [evaluate_predictions(logits[part], labels[part]) for part in (slice(0, 80), slice(80, None))]
    whole = evaluate_predictions(logits, labels)
    pooled = confusion_metrics(np.sum([half["confusion"] for half in halves], axis=0))
    assert pooled == pytest.approx({name: whole[name] for name in pooled})


def test_matrices_need_no_torch():
    code = "import sys, pt_peft.training.metrics; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "False"


def test_several_labels_each_count_for_themselves():
    random = np.random.default_rng(0)
    labels = (random.random((200, 3)) < (0.5, 0.2, 0.0)).astype(np.uint8)
    logits = random.normal(size=(200, 3)) + 2 * labels
    metrics = evaluate_predictions(torch.from_numpy(logits), torch.from_numpy(labels), "multilabel")
    answers = logits > 0
    assert metrics["accuracy"] == pytest.approx(
        np.mean([accuracy_score(labels[:, c], answers[:, c]) for c in range(3)])
    )
    balanced = [balanced_accuracy_score(labels[:, c], answers[:, c]) for c in range(2)] + [(~answers[:, 2]).mean()]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert metrics["macro_f1"] == pytest.approx(
        f1_score(labels, answers, average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]  # a number too
    )
    areas = [roc_auc_score(labels[:, c], logits[:, c]) for c in range(2)]
    assert metrics["class_auroc"] == [pytest.approx(areas[0]), pytest.approx(areas[1]), None]
    assert metrics["auroc"] == pytest.approx(np.mean(areas))
    probabilities = 1 / (1 + np.exp(-logits))
    loss = -np.log(np.where(labels, probabilities, 1 - probabilities)).mean()
    assert metrics["loss"] == pytest.approx(loss)
    bins = np.minimum((probabilities * 15).astype(int), 14)
    gaps = [abs((labels - probabilities)[bins == b].sum()) for b in range(15)]
    assert metrics["ece"] == pytest.approx(sum(gaps) / labels.size)
    assert metrics["confusion"][2] == [int((~answers[:, 2]).sum()), int(answers[:, 2].sum()), 0, 0]


def test_grades_have_kappa_and_error():
    logits, labels = predictions([0, 1, 2, 3, 4])
    metrics = evaluate_predictions(logits, labels, "ordinal")
    predicted = logits.argmax(dim=1)
    assert metrics.get("quadratic_kappa") == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert metrics.get("mean_absolute_error") == pytest.approx((labels - predicted).abs().float().mean().item())
    alone = evaluate_predictions(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), "ordinal")
    assert alone.get("quadratic_kappa", "missing") is None  # nothing to agree on by chance or not
    assert "quadratic_kappa" not in evaluate_predictions(logits, labels)


def test_a_perfect_order_is_no_more_than_perfect():
    labels = torch.tensor([1] * 3 + [0] * 10)
    logits = torch.stack([torch.linspace(0, 1, 13), torch.linspace(1, 0, 13)], dim=1)
    assert evaluate_predictions(logits, labels)["class_auroc"] == [1.0, 1.0]


def test_images_are_told_apart_beyond_the_precision_of_probabilities():
    """Margins of 40 and 60 both have the probability 1, and so have logits of several labels."""
    logits = torch.tensor([[0.0, 60.0, -9.0], [0.0, 40.0, -9.0]], dtype=torch.float64)
    assert evaluate_predictions(logits, torch.tensor([1, 0]))["class_auroc"][1] == 1.0
    assert evaluate_predictions(logits[:, 1:], torch.tensor([[1, 0], [0, 1]]), "multilabel")["class_auroc"][0] == 1.0


@pytest.mark.parametrize("scale", [1, 1000])
def test_log_odds_are_those_of_the_probabilities(scale):
    logits = scale * np.array([[0.0, 2.0, -1.0], [0.5, 0.5, 0.5]])
    expected = [[x - np.logaddexp.reduce(np.delete(row, c)) for c, x in enumerate(row)] for row in logits]
    np.testing.assert_allclose(log_odds(logits, False), expected, atol=1e-12)
    assert log_odds(logits, True) is logits
