r"""How a site treats classes that are rare in its training images: ``training.imbalance``.

    weighted_loss       L = Σ w_y ℓ(z, y) / Σ w_y over a batch,   w_c = N / (K n_c)
    federation_weights  L = mean of w_y ℓ(z, y) / w̄,   w_c from the images of all sites, w̄ the mean of w_y at the site
    balanced_softmax    L = ℓ(z + log(n / N), y)   (Ren et al. 2020, arXiv:2007.10740; Menon et al. 2021,
                        arXiv:2007.07314)
    fedlc               L = ℓ(z - τ n^(-1/4), y)   (Zhang et al. 2022, arXiv:2209.00189)
    weighted_sampler    an image is drawn with probability ∝ 1 / n_y, N times with replacement

with N training images of the site, n_c of them of class c, K classes that have images, ℓ the cross-entropy and z the
logits. Under ``balanced_softmax`` and ``fedlc`` a class without images has no part in the softmax, and its row of the
head no gradient.

Let sites differ in how frequent classes are, and not in what a class looks like: p(x | y) is the same at all. Where the
model can express it, z_c = log p(x | c) minimises ``balanced_softmax`` at every site at once, also at those that lack
classes, as softmax(z + log p_k(y)) is then p_k(y | x). ``weighted_loss`` is the same function at all sites that have
all classes; but a site that lacks a class pushes it down without end, and one that has three images of it trusts these
as much as another its thousand. ``federation_weights`` differ from site to site, and add up to the weighted loss of all
images if sites count by the sums of their weights (`ClassWeightedMean`). ``fedlc`` and ``none`` have other minima at
sites of other shares.

For ``multilabel`` ℓ is the binary cross-entropy of each label, of which a positive weighs
(negatives of c) / (positives of c) under ``weighted_loss``, and ``balanced_softmax`` adds
log(positives of c / negatives of c) to its logit. A label with one answer alone has no part in it: that is the limit
of its loss. Labels that are not known have a loss of 0 in the mean over images and classes: U-Ignore of Irvin et al.
2019, arXiv:1901.07031.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pt_peft.data.items import NOT_KNOWN, strata
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Training
from pt_peft.statistics.moments import Float, class_counts, class_weights

Labels = npt.NDArray[Any]
"""As `ImageSplit` has them: int64 (N,), or for ``multilabel`` uint8 (N,C): 1, 0 or `NOT_KNOWN`."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits float32 (B,C) and labels to a scalar in nats."""


def training_loss(
    experiment: Experiment, labels: Labels, device: torch.device, federation_counts: Float | None = None
) -> Loss:
    """The training loss of a site.

    Args:
        experiment: names the task, the classes and ``training.imbalance``.
        labels: of the site's training images, see `ImageSplit`.
        device: where the loss is computed.
        federation_counts: training images of each class at all sites, float64 (C,), for ``federation_weights``; None
            where the site's own images are all there are.
    """
    training = experiment.training
    if experiment.data.task == "multilabel":
        return _of_labels(training, labels, device)
    counts = class_counts(labels, len(experiment.data.classes))
    match training.imbalance:
        case "balanced_softmax" | "fedlc":
            return _of_shifted_classes(training, counts, device)
        case "federation_weights":
            weights = class_weights(counts if federation_counts is None else federation_counts)
            return _of_weighted_images(training, weights / (weights[labels].mean() or 1.0), device)
        case _:
            weighted = training.imbalance == "weighted_loss"
            weight = _on(device, class_weights(counts)) if weighted else None
            return lambda logits, targets: functional.cross_entropy(
                logits, targets, weight=weight, label_smoothing=training.label_smoothing
            )


def sampling_weights(experiment: Experiment, labels: Labels) -> Float | None:
    """Relative frequencies with which a site's training images are drawn.

    An image with several labels counts as one of its rarest label.

    Args:
        experiment: names ``training.imbalance``.
        labels: of the N training images, see `ImageSplit`.

    Returns:
        Float64 (N,); None if every image is drawn once.
    """
    if experiment.training.imbalance != "weighted_sampler":
        return None
    single = labels.ndim == 1
    rows = [(int(label),) if single else tuple(np.flatnonzero(label == 1).tolist()) for label in labels]
    stratum = np.array(strata(rows))
    return 1 / np.bincount(stratum)[stratum]


def _of_shifted_classes(training: Training, counts: Float, device: torch.device) -> Loss:
    """The cross-entropy among the classes that have images, whose logits are shifted."""
    present = np.flatnonzero(counts)
    shares = counts[present] / counts.sum()
    balanced = training.imbalance == "balanced_softmax"
    shift = np.log(shares) if balanced else -training.fedlc_tau * counts[present] ** -0.25
    # Smoothed by its shares, a balanced softmax learns what an evenly smoothed one of a balanced site does.
    spread = shares if balanced else np.full(len(present), 1 / len(present))
    smoothing = training.label_smoothing
    soft = (1 - smoothing) * np.eye(len(counts))[:, present] + smoothing * spread
    columns, shift_of, soft_of = torch.as_tensor(present, device=device), _on(device, shift), _on(device, soft)

    def shifted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits[:, columns] + shift_of, soft_of[targets])

    return shifted


def _of_weighted_images(training: Training, weights: Float, device: torch.device) -> Loss:
    """The mean over images of their weighted cross-entropies, which no batch's own weights scale."""
    weight_of = _on(device, weights)

    def weighted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        each = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=training.label_smoothing)
        return (weight_of[targets] * each).mean()

    return weighted


def _of_labels(training: Training, labels: Labels, device: torch.device) -> Loss:
    """The mean binary cross-entropy over images and labels."""
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    classes = labels.shape[1]
    of_positive, learnt, shift, spread = np.ones(classes), np.ones(classes), np.zeros(classes), np.full(classes, 0.5)
    if training.imbalance == "weighted_loss":
        of_positive = negatives / np.maximum(positives, 1)
    if training.imbalance == "balanced_softmax":
        learnt = (positives > 0) & (negatives > 0)
        shift[learnt] = np.log(positives[learnt] / negatives[learnt])
        spread[learnt] = positives[learnt] / (positives + negatives)[learnt]
    positive, known, shift_of = _on(device, of_positive), _on(device, learnt), _on(device, shift)
    smoothing, smoothed_part = training.label_smoothing, _on(device, training.label_smoothing * spread)

    def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        soft = targets.float() * (1 - smoothing) + smoothed_part
        # Not `pos_weight`, which would weigh the smoothed part of a negative as a positive.
        weight = torch.where(targets.bool(), positive, 1.0) * known * (targets != NOT_KNOWN)
        return functional.binary_cross_entropy_with_logits(logits + shift_of, soft, weight=weight)

    return binary


def _on(device: torch.device, values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
