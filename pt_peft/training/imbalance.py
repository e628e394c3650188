r"""How a site treats classes that are rare in its training images: ``training.imbalance``.

    weighted_loss      L = Σ w_y ℓ(z, y) / Σ w_y,   w_c = N / (K n_c)
                       multilabel: binary cross-entropy, a positive of label c weighs (negatives of c) / n_c
    balanced_softmax   L = ℓ(z + log(n / N), y)   (Ren et al. 2020, arXiv:2007.10740)
    weighted_sampler   an image is drawn with probability ∝ 1 / n_y, N times with replacement

with N training images of the site, n_c of them of class c, K classes that have images, ℓ the cross-entropy and z the
logits. For ``multilabel`` labels that are not known have a loss of 0 in the mean over images and classes: U-Ignore of
Irvin et al. 2019, arXiv:1901.07031.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pt_peft.data.items import NOT_KNOWN, strata
from pt_peft.experiment.experiment import Experiment

Labels = npt.NDArray[Any]
"""As `ImageSplit` has them: int64 (N,), or for ``multilabel`` uint8 (N,C): 1, 0 or `NOT_KNOWN`."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits float32 (B,C) and labels to a scalar in nats."""


def training_loss(experiment: Experiment, labels: Labels, device: torch.device) -> Loss:
    """The training loss of a site.

    Args:
        experiment: names the task, the classes and ``training.imbalance``.
        labels: of the site's training images, see `ImageSplit`.
        device: where the loss is computed.
    """
    training, classes = experiment.training, len(experiment.data.classes)
    smoothing = training.label_smoothing
    weighted = training.imbalance == "weighted_loss"
    if experiment.data.task == "multilabel":
        positive = _positive_weights(labels).to(device) if weighted else torch.ones(classes, device=device)

        def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            smoothed = targets.float() * (1 - smoothing) + smoothing / 2
            # Not `pos_weight`, which would weigh the smoothed part of a negative as a positive.
            weight = torch.where(targets.bool(), positive, 1.0) * (targets != NOT_KNOWN)
            return functional.binary_cross_entropy_with_logits(logits, smoothed, weight=weight)

        return binary
    counts = np.bincount(labels, minlength=classes)
    weight = _class_weights(counts).to(device) if weighted else None
    shift = torch.zeros(classes, device=device)
    if training.imbalance == "balanced_softmax":
        # -inf for a class without images: it has no part in the softmax, and no gradient.
        shift = torch.tensor(counts / counts.sum(), dtype=torch.float32, device=device).log()

    def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits + shift, targets, weight=weight, label_smoothing=smoothing)

    return cross_entropy


def sampling_weights(experiment: Experiment, labels: Labels) -> npt.NDArray[np.float64] | None:
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


def _class_weights(counts: npt.NDArray[Any]) -> torch.Tensor:
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return torch.tensor(weights, dtype=torch.float32)


def _positive_weights(labels: Labels) -> torch.Tensor:
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    return torch.tensor(negatives / np.maximum(positives, 1), dtype=torch.float32)
