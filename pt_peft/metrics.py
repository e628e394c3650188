"""Evaluation metrics of one model on one split."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

CALIBRATION_BINS = 15


def confusion_matrix_metrics(confusion: np.ndarray) -> dict[str, float]:
    """The metrics that follow from a confusion matrix, which may be the sum of several sites' matrices.

    Args:
        confusion: int64 (C,C); ``confusion[i, j]`` counts images of class i that were predicted as j.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall over the classes that have images; ``macro_f1``, the mean
        F1 = 2 TP / (2 TP + FP + FN) over the classes that have images or predictions, as scikit-learn's
        ``f1_score(average="macro")``.

    Raises:
        ValueError: if it is not such a matrix or counts no image.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or confusion.dtype.kind not in "iu":
        raise ValueError(f"a confusion matrix is integers (C,C), not {confusion.dtype} {confusion.shape}")
    total = confusion.sum()
    if not total:
        raise ValueError("metrics of no images are undefined")
    hits, labelled, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    in_labels = labelled > 0
    seen = labelled + predicted > 0
    return {
        "accuracy": float(hits.sum() / total),
        "balanced_accuracy": float(np.mean(hits[in_labels] / labelled[in_labels])),
        "macro_f1": float(np.mean(2 * hits[seen] / (labelled + predicted)[seen])),
    }


def evaluate_predictions(logits: "torch.Tensor", labels: "torch.Tensor") -> dict[str, object]:
    """Metrics of a model's `logits` float (N,C) against the true `labels` int64 (N,).

    Returns:
        JSON-serialisable: ``count``; ``loss``, the mean cross-entropy (nats); ``confusion`` (C lists of C ints, rows are
        true classes) and what `confusion_matrix_metrics` makes of it; ``auroc``, the mean one-vs-rest area under the
        ROC curve over the classes that have both positives and negatives, None where no class has; ``ece``, the expected
        calibration error of the predicted class in 15 equal bins (Guo et al. 2017).

    Raises:
        ValueError: if the shapes do not fit, there are no images, a label is outside 0 to C - 1, or a logit is not
            finite.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torchmetrics.functional.classification import (
        binary_auroc,
        multiclass_calibration_error,
        multiclass_confusion_matrix,
    )

    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} should be (N,C) and (N,), N > 0")
    logits = logits.detach().double()  # in float32, confident probabilities round to 1 and tie
    classes = logits.shape[1]
    if not torch.isfinite(logits).all():
        raise ValueError("logits are not finite")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()} should be within 0 to {classes - 1}")

    probabilities = logits.softmax(dim=1)
    positives = torch.bincount(labels, minlength=classes)
    decidable = [c for c in range(classes) if 0 < positives[c] < len(labels)]
    areas = [float(binary_auroc(probabilities[:, c], (labels == c).long(), validate_args=False)) for c in decidable]
    confusion = multiclass_confusion_matrix(logits, labels, num_classes=classes)
    return {
        "count": len(labels),
        "loss": float(cross_entropy(logits, labels)),
        "confusion": confusion.tolist(),
        **confusion_matrix_metrics(confusion.cpu().numpy()),
        "auroc": math.fsum(areas) / len(areas) if areas else None,
        "ece": float(multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=CALIBRATION_BINS)),
    }
