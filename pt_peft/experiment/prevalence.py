"""How frequent the classes were where a model learned, as far as a server knows: fields of an adapter file's header."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pt_peft.experiment.fields import ExperimentFields
from pt_peft.experiment.sections import Task
from pt_peft.experiment.statistics import solved
from pt_peft.schema import Strict
from pt_peft.statistics.moments import Float

LearntPrevalence = Literal["uniform", "training", "neither"]
"""The prevalence that a model's probabilities are for: ``uniform``: all classes equally frequent, for ``multilabel``
each label as often present as absent; ``training``: as in the training images of all sites; ``neither``: no prevalence
that is the same at all sites."""

Count = Annotated[int, Field(ge=0, le=2**53)]


class ClassCounts(Strict):
    """Images of each class at all sites together."""

    split: Literal["train", "val"]
    """``train``: training images, where sites have sent their counts to train by; ``val``: those that the validation
    metrics of the aggregate are of."""
    images: Annotated[int, Field(ge=1, le=2**53)]
    """All of them."""
    counts: tuple[Count, ...]
    """Of each class; for ``multilabel`` an image is in several or in none."""

    @model_validator(mode="after")
    def _are_counts(self) -> Self:
        if max(self.counts, default=0) > self.images:
            raise ValueError(f"'images' is {self.images}, and a class has {max(self.counts, default=0)}")
        return self


class KnownPrevalence(Strict):
    """What a header says of how frequent the classes were where its model learned; its fields are the header's."""

    learnt_prevalence: LearntPrevalence | None = None
    """Null in headers of older versions."""
    class_counts: ClassCounts | None = None
    """Null where the server did not know them."""


def learnt_prevalence(experiment: ExperimentFields) -> LearntPrevalence:
    """The prevalence that the probabilities of an experiment's model are for, by what it minimises.

    ``none`` learns p(c | x) at the mix of the training images. ``balanced_softmax`` adds that mix to the logits in the
    loss alone, and the weights of ``weighted_loss``, ``federation_weights`` and ``weighted_sampler`` make it uniform,
    as do those of a classifier in closed form. It is ``neither`` where ``fedlc`` takes margins off the logits that
    follow from each site's own counts, where ``weighted_sampler`` cannot make each of several labels as often present
    as absent, and where ``class_samples`` gives each row of the classifier, under ``none``, a mix of its own.

    It is exact for a model that can express p(c | x), without ``training.label_smoothing``, and where sites weigh by
    their images or all have the same mix; the weights of a site cannot make up for a class that it lacks.
    """
    if solved(experiment, "finish" if experiment.federation.rounds else "start"):
        return "uniform"
    match experiment.training.imbalance:
        case "none":
            return "neither" if getattr(experiment.aggregation, "weighting", None) == "class_samples" else "training"
        case "fedlc":
            return "neither"
        case "weighted_sampler" if experiment.data.task == "multilabel":
            return "neither"
        case _:
            return "uniform"


def class_counts(task: Task, training: Float | None, validation: Sequence[Sequence[int]] | None) -> ClassCounts | None:
    """The class counts that a server knows; None if it knows none.

    Args:
        task: of the experiment.
        training: images of each class that the sites have sent, float64 (K,), perhaps with noise; None if they have
            not.
        validation: confusion counts of all sites' validation images together, as `SplitMetrics` has them.
    """
    if training is not None and (counts := np.maximum(np.rint(training), 0).astype(np.int64)).any():
        return ClassCounts(split="train", images=int(counts.sum()), counts=tuple(counts.tolist()))
    if validation is None:
        return None
    rows = np.array(validation, dtype=np.int64)
    positives = rows[:, 2] + rows[:, 3] if task == "multilabel" else rows.sum(axis=1)
    images = rows[0].sum() if task == "multilabel" else rows.sum()
    return ClassCounts(split="val", images=int(images), counts=tuple(positives.tolist()))
