"""Losses and samplers for rare classes, against their formulas."""

import numpy as np
import pytest
import torch

from helpers import changed
from pt_peft.data.items import NOT_KNOWN
from pt_peft.data.site_data import ImageSplit, batches
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.schema import parse
from pt_peft.training.imbalance import sampling_weights, training_loss

LABELS = np.array([0] * 6 + [1] * 3 + [2])  # none of class 3
LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
TARGETS = torch.tensor([0, 2, 1, 0, 0])
CPU = torch.device("cpu")


def loss_of(tiny: Experiment, kind: str) -> torch.Tensor:
    return training_loss(changed(tiny, training={"imbalance": kind}), LABELS, CPU)(LOGITS, TARGETS)


def test_weighted_loss(tiny):
    log_probabilities = LOGITS.log_softmax(dim=1)[range(5), TARGETS]
    weights = torch.tensor([10 / (3 * 6), 10 / (3 * 3), 10 / 3])[TARGETS]
    expected = -(weights * log_probabilities).sum() / weights.sum()
    assert torch.allclose(loss_of(tiny, "weighted_loss"), expected)
    assert torch.allclose(loss_of(tiny, "none"), -log_probabilities.mean())


def test_balanced_softmax_leaves_absent_classes_alone(tiny):
    loss = loss_of(tiny, "balanced_softmax")
    counts = torch.tensor([6.0, 3.0, 1.0, 0.0])
    shares = counts * LOGITS.exp()
    assert torch.allclose(loss, -(shares / shares.sum(dim=1, keepdim=True))[range(5), TARGETS].log().mean())
    (gradient,) = torch.autograd.grad(loss, LOGITS)
    assert gradient.isfinite().all()
    assert (gradient[:, 3] == 0).all()
    assert (gradient[:, 0] != 0).all()


def test_weighted_sampler_draws_classes_alike(tiny):
    weights = sampling_weights(changed(tiny, training={"imbalance": "weighted_sampler"}), LABELS)
    assert sampling_weights(tiny, LABELS) is None
    split = ImageSplit(np.zeros((10, 3, 4, 4), np.uint8), LABELS)
    drawn = [torch.cat([labels for _, labels in batches(split, 4, seed=seed, weights=weights)]) for seed in range(300)]
    assert all(len(one) == 10 for one in drawn)
    counts = torch.cat(drawn).bincount(minlength=3)
    assert (counts - 1000).abs().max() < 120  # four standard deviations
    again = torch.cat([labels for _, labels in batches(split, 4, seed=7, weights=weights)])
    assert torch.equal(again, drawn[7])


MANY = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.uint8)


def multilabel(tiny: Experiment, **training) -> Experiment:
    return changed(tiny, data={"source": "site", "task": "multilabel", "classes": ["a", "b"]}, training=training)


def test_several_labels(tiny):
    logits, targets = LOGITS[:2, :2], torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    positive, negative = logits.sigmoid().log(), (-logits).sigmoid().log()
    for kind, weight in (("none", torch.ones(2)), ("weighted_loss", torch.tensor([1.0, 3.0]))):
        loss = training_loss(multilabel(tiny, imbalance=kind), MANY, CPU)(logits, targets)
        assert torch.allclose(loss, -torch.where(targets.bool(), weight * positive, negative).mean())
    smoothed = training_loss(multilabel(tiny, label_smoothing=0.2), MANY, CPU)(logits, targets)
    soft = targets * 0.8 + 0.1
    assert torch.allclose(smoothed, -(soft * positive + (1 - soft) * negative).mean())
    # Smoothing does not turn a negative into a heavy positive.
    both = training_loss(multilabel(tiny, imbalance="weighted_loss", label_smoothing=0.2), MANY, CPU)
    single = torch.zeros(1, 2, requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(both(single, torch.tensor([[1, 0]])), single)
        single = (single - 2 * gradient).detach().requires_grad_()
    assert torch.allclose(single.sigmoid(), torch.tensor([[0.9, 0.1]]), atol=1e-3)
    # By rarest label: two of "a", one of "b", one of neither.
    weights = sampling_weights(multilabel(tiny, imbalance="weighted_sampler"), MANY)
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize("imbalance", ["none", "weighted_loss"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_that_are_not_known_are_masked(tiny, imbalance, smoothing):
    """Irvin et al. 2019, U-Ignore: the sum over labels of 1[y != u] times the binary cross-entropy."""
    images = np.array([[1, 0], [1, NOT_KNOWN], [0, 1], [0, 0], [NOT_KNOWN, NOT_KNOWN]], np.uint8)
    experiment = multilabel(tiny, imbalance=imbalance, label_smoothing=smoothing)
    logits = LOGITS[:3, :2].detach().requires_grad_()
    targets = torch.tensor([[1, NOT_KNOWN], [NOT_KNOWN, 0], [0, 1]], dtype=torch.uint8)
    loss = training_loss(experiment, images, CPU)(logits, targets)
    positive, negative = logits.sigmoid().log(), (-logits).sigmoid().log()
    soft = (targets == 1) * (1 - smoothing) + smoothing / 2
    # Two images with and two without "a", one with and two without "b".
    weight = torch.where(targets == 1, torch.tensor([1.0, 2.0]) if imbalance == "weighted_loss" else 1.0, 1.0)
    each = -weight * (soft * positive + (1 - soft) * negative)
    known = torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert torch.allclose(loss, (known * each).sum() / 6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[known == 0] == 0).all()
    assert (gradient[known == 1] != 0).all()


def test_an_image_is_sampled_by_the_labels_that_are_known(tiny):
    images = np.array([[1, NOT_KNOWN], [1, 0], [NOT_KNOWN, 1]], np.uint8)
    weights = sampling_weights(multilabel(tiny, imbalance="weighted_sampler"), images)
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"imbalance": "balanced_softmax", "label_smoothing": 0.1}}, "label_smoothing' must be 0"),
        (
            {
                "training": {"imbalance": "balanced_softmax"},
                "data": {"source": "site", "task": "multilabel", "classes": ["a", "b"]},
            },
            "labels that exclude one another",
        ),
        ({"select_by": "quadratic_kappa"}, "'select_by' must be another metric than 'quadratic_kappa'"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, sections, message):
    with pytest.raises(UserError, match=message):
        parse(Experiment, tiny.model_dump(mode="json") | sections, "experiment.json")
