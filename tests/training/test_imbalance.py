"""Losses and samplers for rare classes, against their formulas."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from helpers import changed
from pt_peft.data.items import NOT_KNOWN
from pt_peft.data.site_data import ImageSplit, batches
from pt_peft.errors import UserError
from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.class_weighted_mean import ClassWeightedMean
from pt_peft.experiment.experiment import Experiment
from pt_peft.schema import parse
from pt_peft.statistics.moments import class_weights
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


def test_a_smoothed_balanced_softmax_gives_nothing_to_absent_classes(tiny):
    """The spread part of the target has the site's shares, of which an absent class has none."""
    experiment = changed(tiny, training={"imbalance": "balanced_softmax", "label_smoothing": 0.2})
    loss = training_loss(experiment, LABELS, CPU)(LOGITS, TARGETS)
    shares = torch.tensor([0.6, 0.3, 0.1])
    log_probabilities = (LOGITS[:, :3] + shares.log()).log_softmax(dim=1)
    soft = 0.8 * torch.eye(3)[TARGETS] + 0.2 * shares
    assert torch.allclose(loss, -(soft * log_probabilities).sum(dim=1).mean())
    (gradient,) = torch.autograd.grad(loss, LOGITS)
    assert (gradient[:, 3] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_fedlc(tiny, smoothing):
    """Zhang et al. 2022: the margin of a class with n images is tau n^(-1/4)."""
    settings = {"imbalance": "fedlc", "fedlc_tau": 2.0, "label_smoothing": smoothing}
    counts = np.array([16, 81, 1, 0])
    loss = training_loss(changed(tiny, training=settings), np.repeat(np.arange(4), counts), CPU)(LOGITS, TARGETS)
    log_probabilities = (LOGITS[:, :3] - 2 * torch.tensor([1 / 2, 1 / 3, 1])).log_softmax(dim=1)
    soft = (1 - smoothing) * torch.eye(3)[TARGETS] + smoothing / 3
    assert torch.allclose(loss, -(soft * log_probabilities).sum(dim=1).mean())
    (gradient,) = torch.autograd.grad(loss, LOGITS)
    assert (gradient[:, 3] == 0).all()


def test_weights_of_the_federation(tiny):
    """Of 40 images of three classes; at the site they weigh 10/27 * 6 + 4/3 * 3 + 4 in all."""
    experiment = changed(tiny, training={"imbalance": "federation_weights"})
    federation = np.array([36.0, 10.0, 0.0, 4.0])
    weights = torch.tensor([50 / 108, 50 / 30, 0, 50 / 12])
    assert torch.allclose(torch.tensor(class_weights(federation)).float(), weights)
    log_probabilities = LOGITS.log_softmax(dim=1)[range(5), TARGETS]
    mean = (6 * 50 / 108 + 3 * 50 / 30) / 10
    loss = training_loss(experiment, LABELS, CPU, federation)
    assert torch.allclose(loss(LOGITS, TARGETS), -(weights[TARGETS] * log_probabilities).mean() / mean)
    # An image weighs the same in any batch.
    parts = (2 * loss(LOGITS[:2], TARGETS[:2]) + 3 * loss(LOGITS[2:], TARGETS[2:])) / 5
    assert torch.allclose(loss(LOGITS, TARGETS), parts)


LOOKS = np.array([[9, 2, 1, 0], [1, 8, 2, 1], [0, 3, 6, 3]]) + 1
"""p(x | y) times 16: how often an image of each of three classes (rows) looks each of four ways."""
SITES = {
    "balanced": (1, 1, 1), "skewed": (9, 1, 2), "otherwise": (1, 4, 30), "lacks a class": (3, 5, 0),
}  # fmt: skip
"""Images of each class at each site, in units of 16."""
OPTIMUM = torch.tensor(LOOKS.T / 16, dtype=torch.float32).log()
"""The head (looks, classes) of a softmax regression on the looks with the logits log p(x | y)."""


def population(shares: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A site of just these shares: its images (N, 4), one-hot by their looks, and labels."""
    counts = LOOKS * np.array(shares)[:, None]
    labels, looks = np.nonzero(counts)
    times = counts[labels, looks]
    return torch.eye(4)[np.repeat(looks, times)], torch.tensor(np.repeat(labels, times))


def gradient(tiny: Experiment, shares: tuple[int, ...], head: torch.Tensor, **training) -> torch.Tensor:
    """Of a site's training loss over all its images with respect to `head`."""
    (images, labels), head = population(shares), head.clone().requires_grad_()
    total = 16.0 * np.array(list(SITES.values())).sum(axis=0)
    experiment = changed(tiny, data={"source": "site", "classes": ["a", "b", "c"]}, training=training)
    loss = training_loss(experiment, labels.numpy(), CPU, total)(images.to(head) @ head, labels)
    return torch.autograd.grad(loss, head)[0]


@pytest.mark.parametrize(
    ("imbalance", "resting"),
    [
        ("balanced_softmax", {"balanced", "skewed", "otherwise", "lacks a class"}),
        ("weighted_loss", {"balanced", "skewed", "otherwise"}),
        ("federation_weights", set()),
        ("fedlc", {"balanced"}),
        ("none", {"balanced"}),
    ],
)
def test_sites_at_which_the_same_model_is_best(tiny, imbalance, resting):
    """Sites differ in p(y) alone: at the logits log p(x | y), a convex loss without a gradient has its minimum."""
    found = {
        name for name, shares in SITES.items() if gradient(tiny, shares, OPTIMUM, imbalance=imbalance).norm() < 1e-6
    }
    assert found == resting


def test_weights_of_the_federation_are_one_objective(tiny):
    """Sites' steps, weighted by their images' weights, are the step of all images in one place, from anywhere."""
    head = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    counts = {name: 16.0 * np.array(shares) for name, shares in SITES.items()}
    total = np.sum(list(counts.values()), axis=0)
    mean = ClassWeightedMean({"head": head.detach().numpy()}, counts, class_weights(total))
    for name, shares in SITES.items():
        after = head - 0.3 * gradient(tiny, shares, head, imbalance="federation_weights")
        mean.add(SiteResult(name, {"head": after.detach().numpy()}, int(counts[name].sum())))
    images, labels = population((total / 16).astype(int))
    weights = torch.tensor(total.sum() / (3 * total))[labels]
    each = -(images.to(head) @ head).log_softmax(dim=1)[range(len(labels)), labels]
    (everywhere,) = torch.autograd.grad((weights * each).sum() / weights.sum(), head)
    np.testing.assert_allclose(mean.result()["head"], (head - 0.3 * everywhere).detach(), atol=1e-7)
    assert mean.shares["lacks a class"] == pytest.approx(3 / 14 / 3 + 5 / 11 / 3)


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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_balanced_softmax_of_several_labels(tiny, smoothing):
    """Adds log(positives / negatives) to each label's logit; a label with one answer alone has no gradient."""
    images = np.array([[1, 1, 0, NOT_KNOWN], [0, 1, 0, NOT_KNOWN], [0, 1, 0, NOT_KNOWN], [NOT_KNOWN] * 4], np.uint8)
    data = {"source": "site", "task": "multilabel", "classes": ["a", "b", "c", "d"]}
    training = {"imbalance": "balanced_softmax", "label_smoothing": smoothing}
    logits = LOGITS.detach().requires_grad_()
    targets = torch.tensor([[1, 1, 0, NOT_KNOWN], [0, 1, 0, NOT_KNOWN], [NOT_KNOWN] * 4], dtype=torch.uint8)
    loss = training_loss(changed(tiny, data=data, training=training), images, CPU)(logits[:3], targets)
    shifted = logits[:2, 0] + math.log(1 / 2)
    soft = torch.tensor([1.0, 0.0]) * (1 - smoothing) + smoothing / 3
    each = -(soft * shifted.sigmoid().log() + (1 - soft) * (-shifted).sigmoid().log())
    assert torch.allclose(loss, each.sum() / 12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:2, 0].all()
    assert gradient.count_nonzero() == 2


def test_several_labels_have_one_optimum_at_all_sites(tiny):
    """log p(x | yes) - log p(x | no), however frequent a label is; binary cross-entropy alone has another."""
    data = {"source": "site", "task": "multilabel", "classes": ["a", "b"]}
    positive, negative = LOOKS[0], LOOKS[1]
    optimum = torch.tensor(np.log(positive / negative), dtype=torch.float32)
    found = {}
    for imbalance in ("balanced_softmax", "weighted_loss", "none"):
        for yes, no in ((1, 1), (1, 9), (7, 2), (0, 3)):
            looks = np.concatenate([np.repeat(np.arange(4), positive * yes), np.repeat(np.arange(4), negative * no)])
            answers = np.repeat([1, 0], [16 * yes, 16 * no]).astype(np.uint8)
            labels = np.stack([answers, np.full_like(answers, NOT_KNOWN)], axis=1)
            head = torch.stack([optimum, optimum], dim=1).requires_grad_()
            loss = training_loss(changed(tiny, data=data, training={"imbalance": imbalance}), labels, CPU)
            (gradient,) = torch.autograd.grad(loss(torch.eye(4)[looks] @ head, torch.tensor(labels)), head)
            found[imbalance, yes, no] = bool(gradient.norm() < 1e-6)
    assert all(found[key] for key in found if key[0] == "balanced_softmax")
    assert [found["weighted_loss", yes, no] for yes, no in ((1, 1), (1, 9), (7, 2), (0, 3))] == [True] * 3 + [False]
    assert [found["none", yes, no] for yes, no in ((1, 1), (1, 9), (7, 2), (0, 3))] == [True] + [False] * 3


def test_an_image_is_sampled_by_the_labels_that_are_known(tiny):
    images = np.array([[1, NOT_KNOWN], [1, 0], [NOT_KNOWN, 1]], np.uint8)
    weights = sampling_weights(multilabel(tiny, imbalance="weighted_sampler"), images)
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {
                "training": {"imbalance": "fedlc"},
                "data": {"source": "site", "task": "multilabel", "classes": ["a", "b"]},
            },
            "classes that exclude one another",
        ),
        ({"select_by": "quadratic_kappa"}, "'select_by' must be another metric than 'quadratic_kappa'"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, sections, message):
    with pytest.raises(UserError, match=message):
        parse(Experiment, tiny.model_dump(mode="json") | sections, "experiment.json")
