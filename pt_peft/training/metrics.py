"""Evaluation metrics of one model on one split."""

import math
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from pt_peft.experiment.sections import Task

if TYPE_CHECKING:
    import torch

CALIBRATION_BINS = 15
"""Bins of the expected calibration error."""


class ConfusionMetrics(TypedDict):
    """The metrics that follow from confusion counts."""

    accuracy: float
    """Share of images that are predicted right; for ``multilabel`` the mean over labels, as MedMNIST's ``getACC``."""
    balanced_accuracy: float
    """Mean recall over the classes that have images; for ``multilabel`` the mean over labels of the mean recall of both
    answers."""
    macro_f1: float
    """Mean F1 = 2 TP / (2 TP + FP + FN) over the classes that have images or predictions, as scikit-learn's
    ``f1_score(average="macro")``."""
    quadratic_kappa: NotRequired[float | None]
    """For ``ordinal``: Cohen's kappa with quadratic weights; None where it is undefined."""
    mean_absolute_error: NotRequired[float]
    """For ``ordinal``, grades."""


class Metrics(ConfusionMetrics):
    """The metrics of one model on one split."""

    count: int
    """Images."""
    loss: float
    """Mean cross-entropy, nats; binary for ``multilabel``."""
    confusion: list[list[int]]
    """Counts as `confusion_metrics` takes them."""
    class_auroc: list[float | None]
    """Each class's one-vs-rest area under the ROC curve; None where it has no positives or no negatives."""
    auroc: float | None
    """Mean of ``class_auroc`` over the classes that have one; None where no class has."""
    ece: float
    """Expected calibration error of the predicted class, or of all labels' answers, in 15 equal bins (a, b] (Guo et al.
    2017)."""


def confusion_metrics(confusion: npt.NDArray[np.int64], task: Task = "multiclass") -> ConfusionMetrics:
    """The metrics that follow from confusion counts, which may be sums over several sites.

    Args:
        confusion: integers (C,C), ``confusion[i, j]`` counts images of class i that were predicted as j. For
            ``multilabel`` integers (C,4): each label's true negatives, false positives, false negatives and true
            positives.
        task: ``data.task`` of the experiment.

    Raises:
        ValueError: if `confusion` is not such a matrix or counts no image.
    """
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
    values: ConfusionMetrics = {
        "accuracy": float(hits.sum() / total),
        "balanced_accuracy": float((hits[in_labels] / labelled[in_labels]).mean()),
        "macro_f1": float((2 * hits[seen] / (labelled + predicted)[seen]).mean()),
    }
    if task == "ordinal":
        grades = np.arange(len(confusion))
        distance = np.abs(grades[:, None] - grades)
        by_chance = (np.outer(labelled, predicted) * distance**2).sum() / total
        values["quadratic_kappa"] = float(1 - (confusion * distance**2).sum() / by_chance) if by_chance else None
        values["mean_absolute_error"] = float((confusion * distance).sum() / total)
    return values


def _binary_means(confusion: npt.NDArray[np.int64]) -> ConfusionMetrics:
    tn, fp, fn, tp = confusion.T
    recalls = [np.mean([hit / all_ for hit, all_ in ((t, t + m), (n, n + f)) if all_]) for n, f, m, t in confusion]
    seen = tp + fp + fn > 0
    return {
        "accuracy": float(((tn + tp) / confusion.sum(axis=1)).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float((2 * tp[seen] / (2 * tp + fp + fn)[seen]).mean()) if seen.any() else 0.0,
    }


def evaluate_predictions(logits: "torch.Tensor", labels: "torch.Tensor", task: Task = "multiclass") -> Metrics:
    """Compares a model's predictions with the truth.

    Args:
        logits: float (N,C).
        labels: int64 (N,), or for ``multilabel`` 0 and 1 (N,C).
        task: ``data.task`` of the experiment.

    Raises:
        ValueError: if the shapes do not fit, there are no images, a label is outside 0 to C - 1, or a logit is not
            finite.
    """
    from torch.nn import functional

    multilabel = task == "multilabel"
    if (
        logits.ndim != 2
        or labels.shape != logits.shape[: labels.ndim]
        or labels.ndim != 1 + multilabel
        or not len(labels)
    ):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} should be (N,C) and "
            f"{'(N,C)' if multilabel else '(N,)'}, N > 0"
        )
    classes = logits.shape[1]
    highest = 1 if multilabel else classes - 1
    if not (int(labels.min()) >= 0 and int(labels.max()) <= highest):
        raise ValueError(f"labels {int(labels.min())} to {int(labels.max())} should be within 0 to {highest}")
    if not logits.isfinite().all():
        raise ValueError("logits are not finite")
    logits = logits.detach().cpu().double()
    labels = labels.cpu()
    if multilabel:
        loss = functional.binary_cross_entropy_with_logits(logits, labels.double())
        is_class, probabilities = labels.numpy() == 1, logits.sigmoid().numpy()
        answers = probabilities > 0.5
        counts = [(~is_class & ~answers), (~is_class & answers), (is_class & ~answers), (is_class & answers)]
        confusion = np.stack([count.sum(axis=0) for count in counts], axis=1)
        ece = _calibration_error(probabilities.ravel(), is_class.ravel())
    else:
        loss = functional.cross_entropy(logits, labels)
        truth, probabilities = labels.numpy(), logits.softmax(dim=1).numpy()
        predicted = logits.argmax(dim=1).numpy()
        is_class = truth[:, None] == np.arange(classes)
        confusion = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
        ece = _calibration_error(probabilities.max(axis=1), truth == predicted)
    scores = log_odds(logits.numpy(), multilabel)
    areas = [_area_under_roc(scores[:, c], is_class[:, c]) for c in range(classes)]
    known = [area for area in areas if area is not None]
    return {
        "count": len(labels),
        "loss": float(loss),
        "confusion": confusion.tolist(),
        **confusion_metrics(confusion, task),
        "auroc": math.fsum(known) / len(known) if known else None,
        "class_auroc": areas,
        "ece": ece,
    }


def log_odds(logits: npt.NDArray[np.float64], multilabel: bool) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)) of each class's probability p, which ranks images as p does.

    Confident probabilities round to 1, so that images would tie that the model tells apart, or change places.

    Args:
        logits: (N,C).
        multilabel: whether each class has a probability of its own: the logits are then the log odds.

    Returns:
        (N,C); infinite where nothing speaks for another class.
    """
    if multilabel:
        return logits
    ordered = np.sort(logits, axis=1)  # so that equal logits of other classes give equal sums
    highest = ordered[:, -1:]
    of_highest = highest - np.logaddexp.reduce(ordered[:, :-1], axis=1, keepdims=True)
    # Of all others p is at most 1/2, so that 1 - p is exact enough.
    others = np.where(logits == highest, -np.inf, logits - np.logaddexp.reduce(ordered, axis=1, keepdims=True))
    return np.where(logits == highest, of_highest, others - np.log1p(-np.exp(others)))


def _area_under_roc(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float | None:
    """The share of pairs of a positive and a negative in which the positive has the higher score.

    Ties count by half (Mann and Whitney 1947). None without positives or without negatives.
    """
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    if not pairs:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # equal scores have their mean rank
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / pairs)


def _calibration_error(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """The mean distance between confidence and accuracy over equal bins (a, b], weighted by their numbers of answers.

    As Guo et al. 2017, arXiv:1706.04599; 0 is in the first bin.
    """
    bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidences)
    gaps = np.bincount(bins, weights=confidences) - np.bincount(bins, weights=right)
    return float(np.abs(gaps).sum() / len(bins))
