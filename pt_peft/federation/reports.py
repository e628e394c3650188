"""What a site reports beside its payload; nothing else leaves the site. Both ends validate it.

A report leaves as `checked` returns it: its floats are rounded to what they mean, or follow from its counts, as longer
ones could carry anything. The documentation's page on security has what is left, in bits. Imports no torch.
"""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from typing import Annotated, Self, cast

import numpy as np
from pydantic import Field

from pt_peft.environment import Code
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Data, Precision
from pt_peft.experiment.statistics import stages
from pt_peft.schema import Strict
from pt_peft.training.metrics import confusion_metrics

Count = Annotated[int, Field(ge=0, le=10**7)]
Loss = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SplitMetrics(Strict):
    """Metrics of one model on one split, see `pt_peft.training.metrics`."""

    count: Annotated[int, Field(ge=1, le=10**7)]
    """Number of images."""
    loss: Loss
    """Mean cross-entropy in nats; binary cross-entropy for ``multilabel``."""
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    auroc: Share | None
    """Null where no class has both positives and negatives."""
    class_auroc: Annotated[list[Share | None], Field(max_length=1000)]
    """Area under the ROC curve of each class against the rest; null where it has no positives or no negatives."""
    ece: Share
    """Expected calibration error over 15 bins."""
    confusion: Annotated[list[Annotated[list[Count], Field(max_length=1000)]], Field(max_length=1000)]
    """Images by label (rows) and prediction (columns). For ``multilabel`` one row for each label: true negatives, false
    positives, false negatives, true positives."""
    quadratic_kappa: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """Quadratically weighted kappa; only for ``ordinal``."""
    mean_absolute_error: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    """Mean distance between label and prediction in grades; only for ``ordinal``."""

    def checked(self, data: Data) -> Self:
        """Checks that the metrics fit the task and one another.

        Returns:
            The metrics as they may leave: ``loss`` to four significant digits and 1e-4, areas and ``ece`` to 1e-4,
            areas also to what so many positives and negatives can give, and all that follows from these computed anew.

        Raises:
            UserError: unless there is an entry for each of ``data.classes``, the confusion counts have every image once
                (once for each label for ``multilabel``), and they give the metrics that are reported beside them.
        """
        classes = len(data.classes)
        multilabel = data.task == "multilabel"
        width = 4 if multilabel else classes
        shape = [len(row) for row in self.confusion]
        sums = [sum(row) for row in self.confusion] if multilabel else [sum(map(sum, self.confusion))]
        if shape != [width] * classes or set(sums) != {self.count}:
            raise UserError(
                f"report: the confusion counts have rows of {shape} counts that sum to {sums}; {classes} rows of "
                f"{width} counts that sum to {self.count}{' each' if multilabel else ''} would be right.",
                "confusion",
            )
        if len(self.class_auroc) != classes:
            raise UserError(
                f"report: class_auroc has {len(self.class_auroc)} values; {classes} would be right.", "class_auroc"
            )
        positives = [row[2] + row[3] if multilabel else sum(row) for row in self.confusion]
        areas = [
            self._area(number, area, count * (self.count - count))
            for number, (area, count) in enumerate(zip(self.class_auroc, positives, strict=True))
        ]
        known = [area for area in areas if area is not None]
        metrics = confusion_metrics(np.array(self.confusion, dtype=np.int64), data.task)
        derived = dict(cast(Mapping[str, float | None], metrics))
        derived["auroc"] = sum(known) / len(known) if known else None
        for name in ("quadratic_kappa", "mean_absolute_error"):
            derived.setdefault(name, None)
        for name, value in derived.items():
            reported = getattr(self, name)
            if (reported is None) != (value is None) or (value is not None and abs(reported - value) > _TOLERANCE):
                raise UserError(f"report: {name} is {reported}, but what is reported beside it gives {value}.", name)
        rounded = {"loss": rounded_loss(self.loss), "ece": round(self.ece, 4), "class_auroc": areas}
        return self.model_copy(update={**rounded, **derived})

    def _area(self, number: int, area: float | None, pairs: int) -> float | None:
        """A class's area, as multiples of half a pair of a positive and a negative, to 1e-4."""
        if (area is None) != (pairs == 0):
            right = "a number" if pairs else "null"
            raise UserError(
                f"report: class_auroc.{number} is {area}, but with {pairs} pairs of images {right} would be right.",
                "class_auroc",
            )
        return None if area is None else round(round(area * 2 * pairs) / (2 * pairs), 4)


_TOLERANCE = 1e-4
"""Of what follows from rounded values."""


def rounded_loss(value: float) -> float:
    """`value` to four significant digits, and no finer than 1e-4."""
    return round(float(f"{value:.4g}"), 4)


def rounded_seconds(value: float) -> float:
    """`value` to 0.1 s."""
    return round(value, 1)


def rounded_epsilon(value: float) -> float:
    """`value` to four significant digits, upwards: it stays a bound."""
    return float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(repr(value)))


def _checked_epsilon(value: float | None, promised: bool) -> float | None:
    """`value` as it may leave. Raises UserError unless it is there exactly where it is `promised`."""
    if (value is not None) != promised:
        right = "a number" if promised else "null"
        raise UserError(f"report: epsilon is {value}; {right} would be right.", "epsilon")
    return None if value is None else rounded_epsilon(value)


def _checked_precision(value: Precision | None, experiment: Experiment) -> Precision:
    """What the site computed in. Raises UserError unless it may be, or must be told and is not."""
    asked = experiment.training.precision
    if asked == "auto" and value is not None:
        return value
    if asked == "auto" or value not in (None, asked):
        right = "float32 or bfloat16" if asked == "auto" else asked
        raise UserError(
            f"report: precision is {value}, and training.precision {asked}; {right} would be right.", "precision"
        )
    return asked


class TrainingReport(Strict):
    """A site's report of a round."""

    num_samples: Annotated[int, Field(ge=1, le=10**8)]
    """Number of training images of one local epoch; `most_images` bounds it further."""
    train_loss: Loss | None
    """Mean training loss; null under differential privacy, as it has no noise."""
    seconds: Seconds
    """Wall time of the site's work in the round."""
    code: Code
    """The code that made the report."""
    precision: Precision | None = None
    """What the site computed in. Null from code that knew no ``training.precision`` ``auto``."""
    val: SplitMetrics | None
    """Metrics of the model the round started from; null if the site has no validation images."""
    own_val: SplitMetrics | None = None
    """The same for the site's own model, if ``training.ditto`` gives it one and there was a round before."""
    epsilon: Epsilon | None = None
    """Epsilon that the site's part in the job has cost so far, by its own noise alone: for each training image with
    ``privacy.sample``, with what ``privacy.statistics`` releases, else for the site, where sites add the noise of
    ``privacy.client``. Null where the site adds no noise that counts."""

    def splits(self) -> list[SplitMetrics]:
        """The metrics that are there."""
        return [split for split in (self.val, self.own_val) if split]

    def checked(self, experiment: Experiment) -> Self:
        """Checks the report against the experiment.

        Returns:
            The report as it may leave: metrics as `SplitMetrics.checked` returns them, the loss rounded like theirs,
            ``seconds`` to 0.1 s, and ``epsilon`` to four significant digits, upwards.

        Raises:
            UserError: as `SplitMetrics.checked` does, for metrics of a model that no site has, for more images than
                `most_images`, and unless the report has an epsilon, and no training loss, exactly where
                ``experiment.privacy`` asks for that.
        """
        _check_num_samples(self.num_samples, experiment)
        splits = _checked_splits({"val": self.val, "own_val": self.own_val}, experiment)
        privacy = experiment.privacy
        if (self.train_loss is None) != privacy.asked:
            right = "null" if privacy.asked else "a number"
            raise UserError(f"report: train_loss is {self.train_loss}; {right} would be right.", "train_loss")
        numbers = {
            "train_loss": None if self.train_loss is None else rounded_loss(self.train_loss),
            "seconds": rounded_seconds(self.seconds),
            "epsilon": _checked_epsilon(self.epsilon, privacy.claimed and privacy.by_sites),
            "precision": _checked_precision(self.precision, experiment),
        }
        return self.model_copy(update={**splits, **numbers})


class EvaluationReport(Strict):
    """A site's report of an evaluation. Metrics are null for a split without images."""

    val: SplitMetrics | None = None
    test: SplitMetrics | None = None
    own_val: SplitMetrics | None = None
    own_test: SplitMetrics | None = None
    """Metrics of the site's own model, as in `TrainingReport`."""
    seconds: Seconds
    code: Code
    precision: Precision | None = None
    """As in `TrainingReport`."""

    def splits(self) -> list[SplitMetrics]:
        """The metrics that are there."""
        return [split for split in (self.val, self.test, self.own_val, self.own_test) if split]

    def checked(self, experiment: Experiment) -> Self:
        """The report as it may leave.

        Raises:
            UserError: as `SplitMetrics.checked` does, and for metrics of a model that no site has.
        """
        splits = {"val": self.val, "test": self.test, "own_val": self.own_val, "own_test": self.own_test}
        return self.model_copy(
            update={
                **_checked_splits(splits, experiment),
                "seconds": rounded_seconds(self.seconds),
                "precision": _checked_precision(self.precision, experiment),
            }
        )


class StatisticsReport(Strict):
    """A site's report beside its counts, or the sums of its features (`pt_peft.experiment.statistics`)."""

    num_samples: Annotated[int, Field(ge=1, le=10**8)]
    """Training images that are in them."""
    classes_left_out: Annotated[int, Field(ge=0, le=1000)]
    """Classes that have fewer images at the site than its ``limits.min_images_per_class``, and are in none of them."""
    seconds: Seconds
    code: Code
    precision: Precision | None = None
    """As in `TrainingReport`."""
    epsilon: Epsilon | None = None
    """What the site's part in the job has cost each training image so far, with this release, where
    ``privacy.statistics`` adds noise that counts."""

    def splits(self) -> list[SplitMetrics]:
        """No metrics."""
        return []

    def checked(self, experiment: Experiment) -> Self:
        """The report as it may leave.

        Raises:
            UserError: if it counts more images or classes than there can be, and unless it has an epsilon exactly where
                ``experiment.privacy`` asks for that.
        """
        _check_num_samples(self.num_samples, experiment)
        if self.classes_left_out >= (classes := len(experiment.data.classes)):
            raise UserError(
                f"report: classes_left_out is {self.classes_left_out}, and the job has {classes} classes.",
                "classes_left_out",
            )
        promised = experiment.privacy.claimed and experiment.privacy.statistics is not None
        numbers = {
            "seconds": rounded_seconds(self.seconds),
            "epsilon": _checked_epsilon(self.epsilon, promised),
            "precision": _checked_precision(self.precision, experiment),
        }
        return self.model_copy(update=numbers)


class ChoiceReport(Strict):
    """A site's report of the candidates for a classifier in closed form."""

    candidates: Annotated[list[SplitMetrics], Field(min_length=1, max_length=20)] | None
    """Metrics by each of ``head.penalties``; null if the site has too few images to choose by."""
    seconds: Seconds
    code: Code
    precision: Precision | None = None
    """As in `TrainingReport`."""

    def splits(self) -> list[SplitMetrics]:
        """The metrics that are there."""
        return self.candidates or []

    def checked(self, experiment: Experiment) -> Self:
        """The report as it may leave.

        Raises:
            UserError: as `SplitMetrics.checked` does, and unless there is an entry for each of ``head.penalties``, all
                of the same images.
        """
        found, wanted = self.splits(), len(experiment.head.penalties)
        if self.candidates is not None and len(found) != wanted:
            raise UserError(f"report: candidates has {len(found)} entries; {wanted} would be right.", "candidates")
        if len({one.count for one in found}) > 1:
            raise UserError("report: candidates are evaluated on different numbers of images.", "candidates")
        candidates = None if self.candidates is None else [one.checked(experiment.data) for one in found]
        return self.model_copy(
            update={
                "candidates": candidates,
                "seconds": rounded_seconds(self.seconds),
                "precision": _checked_precision(self.precision, experiment),
            }
        )


def most_images(experiment: Experiment) -> int:
    """Most training images that a site can have in `experiment`: what it may say, and what it may use."""
    data = experiment.data
    used = data.images_per_site if data.source == "lesions" else data.max_images_per_site
    return min(experiment.federation.max_images, used.get("train", experiment.federation.max_images))


def report_bytes(experiment: Experiment) -> int:
    """Most bytes of a report of any kind as it travels, with what FLARE adds to it."""
    classes = len(experiment.data.classes)
    # Splits or candidates, each with counts of at most five bytes, areas of nine, and a dozen names with a number.
    candidates = len(experiment.head.penalties) if stages(experiment) else 0
    return (64 << 10) + max(4, candidates) * (5 * classes * max(classes, 4) + 9 * classes + 512)


def _check_num_samples(number: int, experiment: Experiment) -> None:
    if number > (most := most_images(experiment)):
        raise UserError(
            f"report: field 'num_samples' is {number}; at most {most} would be right, by federation.max_images and the "
            "section data of the experiment.",
            "num_samples",
        )


def _checked_splits(
    splits: Mapping[str, SplitMetrics | None], experiment: Experiment
) -> dict[str, SplitMetrics | None]:
    for name, split in splits.items():
        if split is not None and name.startswith("own_") and not experiment.training.ditto:
            raise UserError(
                f"report: {name} is there, but training.ditto is 0, so that no site has a model of its own.", name
            )
    return {name: split and split.checked(experiment.data) for name, split in splits.items()}
