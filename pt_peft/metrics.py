"""Evaluation metrics of one model on one split."""

import math
from typing import TYPE_CHECKING

import numpy as np

from pt_peft.experiment import Task

if TYPE_CHECKING:
    import torch

CALIBRATION_BINS = 15


def confusion_metrics(confusion: np.ndarray, task: Task = "multiclass") -> dict[str, float]:
    """The metrics that follow from confusion counts, which may be the sum of several sites'.

    Args:
        confusion: int64 (C,C), ``confusion[i, j]`` counts images of class i that were predicted as j; for ``multilabel``
            int64 (C,4), each label's true negatives, false positives, false negatives and true positives.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall over the classes that have images; ``macro_f1``, the mean
        F1 = 2 TP / (2 TP + FP + FN) over the classes that have images or predictions, as scikit-learn's
        ``f1_score(average="macro")``. For ``multilabel`` the means over labels of each label's own, as MedMNIST's
        ``getACC``, with the recalls of both answers for balanced accuracy. For ``ordinal`` besides ``quadratic_kappa``,
        Cohen's kappa with quadratic weights, None where it is undefined, and ``mean_absolute_error``, grades.

    Raises:
        ValueError: if it is not such a matrix or counts no image.
    """
    confusion = np.asarray(confusion)
    right = 4 if task == "multilabel" else confusion.shape[0] if confusion.ndim else 0
    if confusion.ndim != 2 or confusion.shape[1] != right or confusion.dtype.kind not in "iu":
        expected = "(C,4)" if task == "multilabel" else "(C,C)"
        raise ValueError(f"a confusion matrix is integers {expected}, not {confusion.dtype} {confusion.shape}")
    if not confusion.sum():
        raise ValueError("metrics of no images are undefined")
    if task == "multilabel":
        return _binary_means(confusion)
    total = confusion.sum()
    hits, labelled, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    in_labels = labelled > 0
    seen = labelled + predicted > 0
    values = {
        "accuracy": float(hits.sum() / total),
        "balanced_accuracy": float(np.mean(hits[in_labels] / labelled[in_labels])),
        "macro_f1": float(np.mean(2 * hits[seen] / (labelled + predicted)[seen])),
    }
    if task == "ordinal":
        grades = np.arange(len(confusion))
        distance = np.abs(grades[:, None] - grades)
        by_chance = (np.outer(labelled, predicted) * distance**2).sum() / total
        values["quadratic_kappa"] = float(1 - (confusion * distance**2).sum() / by_chance) if by_chance else None
        values["mean_absolute_error"] = float((confusion * distance).sum() / total)
    return values


def _binary_means(confusion: np.ndarray) -> dict[str, float]:
    tn, fp, fn, tp = confusion.T
    recalls = [np.mean([hit / all_ for hit, all_ in ((t, t + m), (n, n + f)) if all_]) for n, f, m, t in confusion]
    seen = tp + fp + fn > 0
    return {
        "accuracy": float(np.mean((tn + tp) / confusion.sum(axis=1))),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(np.mean(2 * tp[seen] / (2 * tp + fp + fn)[seen])) if seen.any() else 0.0,
    }


def evaluate_predictions(
    logits: "torch.Tensor", labels: "torch.Tensor", task: Task = "multiclass"
) -> dict[str, object]:
    """Metrics of a model's `logits` float (N,C) against the true `labels`, int64 (N,), or 0 and 1 (N,C) for ``multilabel``.

    Returns:
        JSON-serialisable: ``count``; ``loss``, the mean cross-entropy (nats), binary for ``multilabel``; ``confusion`` and
        what `confusion_metrics` makes of it; ``class_auroc``, each class's one-vs-rest area under the ROC curve, None where
        it has no positives or no negatives; ``auroc``, the mean over those that have one, None where no class has; ``ece``,
        the expected calibration error of the predicted class, or of all labels' answers, in 15 equal bins (Guo et al. 2017).

    Raises:
        ValueError: if the shapes do not fit, there are no images, a label is outside 0 to C - 1, or a logit is not
            finite.
    """
    from torch.nn import functional
    from torchmetrics.functional import classification

    multilabel = task == "multilabel"
    if logits.ndim != 2 or labels.shape != logits.shape[: labels.ndim] or labels.ndim != 1 + multilabel or not len(labels):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} should be (N,C) and "
            f"{'(N,C)' if multilabel else '(N,)'}, N > 0"
        )
    classes = logits.shape[1]
    highest = 1 if multilabel else classes - 1
    if not (0 <= int(labels.min()) and int(labels.max()) <= highest):
        raise ValueError(f"labels {int(labels.min())} to {int(labels.max())} should be within 0 to {highest}")
    if not logits.isfinite().all():
        raise ValueError("logits are not finite")
    logits = logits.detach().double()  # in float32, confident probabilities round to 1 and tie
    if multilabel:
        is_class, probabilities = labels.long(), logits.sigmoid()
        loss = functional.binary_cross_entropy_with_logits(logits, labels.double())
        confusion = classification.multilabel_confusion_matrix(probabilities, is_class, num_labels=classes).flatten(1)
        ece = classification.binary_calibration_error(probabilities.flatten(), is_class.flatten(), n_bins=CALIBRATION_BINS)
    else:
        is_class, probabilities = functional.one_hot(labels, classes), logits.softmax(dim=1)
        loss = functional.cross_entropy(logits, labels)
        confusion = classification.multiclass_confusion_matrix(logits, labels, num_classes=classes)
        ece = classification.multiclass_calibration_error(
            probabilities, labels, num_classes=classes, n_bins=CALIBRATION_BINS
        )
    areas = [  # torchmetrics integrates in float32, and may come out above 1
        min(1.0, float(classification.binary_auroc(probabilities[:, c], is_class[:, c], validate_args=False)))
        if 0 < is_class[:, c].sum() < len(labels)
        else None
        for c in range(classes)
    ]
    known = [area for area in areas if area is not None]
    return {
        "count": len(labels),
        "loss": float(loss),
        "confusion": confusion.tolist(),
        **confusion_metrics(confusion.cpu().numpy(), task),
        "auroc": math.fsum(known) / len(known) if known else None,
        "class_auroc": areas,
        "ece": min(1.0, float(ece)),
    }
