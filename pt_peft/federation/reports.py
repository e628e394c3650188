"""What a site reports beside its payload; nothing else leaves the site. Both ends validate it.

Imports no torch.
"""

from collections.abc import Mapping
from typing import Annotated, cast

import numpy as np
from pydantic import Field

from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Data
from pt_peft.schema import Strict
from pt_peft.training.metrics import confusion_metrics

Count = Annotated[int, Field(ge=0, le=10**7)]
Loss = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
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

    def check(self, data: Data) -> None:
        """Checks that the metrics fit the task and one another.

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
                f"{width} counts that sum to {self.count}{' each' if multilabel else ''} would be right."
            )
        if len(self.class_auroc) != classes:
            raise UserError(f"report: class_auroc has {len(self.class_auroc)} values; {classes} would be right.")
        known = [area for area in self.class_auroc if area is not None]
        metrics = confusion_metrics(np.array(self.confusion, dtype=np.int64), data.task)
        derived = dict(cast(Mapping[str, float | None], metrics))
        derived["auroc"] = sum(known) / len(known) if known else None
        for name in ("quadratic_kappa", "mean_absolute_error"):
            derived.setdefault(name, None)
        for name, value in derived.items():
            reported = getattr(self, name)
            if (reported is None) != (value is None) or (value is not None and abs(reported - value) > 1e-6):
                raise UserError(f"report: {name} is {reported}, but what is reported beside it gives {value}.")


class TrainingReport(Strict):
    """A site's report of a round."""

    num_samples: Annotated[int, Field(ge=1, le=10**8)]
    """Number of training images of one local epoch; `most_images` bounds it further."""
    train_loss: Loss | None
    """Mean training loss; null under differential privacy, as it has no noise."""
    seconds: Seconds
    """Wall time of the site's work in the round."""
    val: SplitMetrics | None
    """Metrics of the model the round started from; null if the site has no validation images."""
    own_val: SplitMetrics | None = None
    """The same for the site's own model, if ``training.ditto`` gives it one and there was a round before."""
    epsilon: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    """Epsilon that the site's part in the job has cost so far, by its own noise alone: for each training image with
    ``privacy.sample``, else for the site, where sites add the noise of ``privacy.client``. Null where the site adds no
    noise that counts."""

    def check(self, experiment: Experiment) -> None:
        """Checks the report against the experiment.

        Raises:
            UserError: as `SplitMetrics.check` does, for metrics of a model that no site has, for more images than
                `most_images`, and unless the report has an epsilon, and no training loss, exactly where
                ``experiment.privacy`` asks for that.
        """
        if self.num_samples > (most := most_images(experiment)):
            raise UserError(
                f"report: field 'num_samples' is {self.num_samples}; at most {most} would be right, by "
                "federation.max_images and the section data of the experiment."
            )
        _check_splits({"val": self.val, "own_val": self.own_val}, experiment)
        privacy = experiment.privacy
        if (self.train_loss is None) != privacy.asked:
            right = "null" if privacy.asked else "a number"
            raise UserError(f"report: train_loss is {self.train_loss}; {right} would be right.")
        promised = privacy.claimed and privacy.by_sites
        if (self.epsilon is not None) != promised:
            raise UserError(f"report: epsilon is {self.epsilon}; {'a number' if promised else 'null'} would be right.")


class EvaluationReport(Strict):
    """A site's report of an evaluation. Metrics are null for a split without images."""

    val: SplitMetrics | None = None
    test: SplitMetrics | None = None
    own_val: SplitMetrics | None = None
    own_test: SplitMetrics | None = None
    """Metrics of the site's own model, as in `TrainingReport`."""
    seconds: Seconds

    def check(self, experiment: Experiment) -> None:
        """Raises UserError as `SplitMetrics.check` does, and for metrics of a model that no site has."""
        splits = {"val": self.val, "test": self.test, "own_val": self.own_val, "own_test": self.own_test}
        _check_splits(splits, experiment)


def most_images(experiment: Experiment) -> int:
    """Most training images that a site can have in `experiment`: what it may say, and what it may use."""
    data = experiment.data
    used = data.images_per_site if data.source == "lesions" else data.max_images_per_site
    return min(experiment.federation.max_images, used.get("train", experiment.federation.max_images))


def report_bytes(experiment: Experiment) -> int:
    """Most bytes of a report of either kind as it travels, with what FLARE adds to it."""
    classes = len(experiment.data.classes)
    # Four splits, each with counts of at most five bytes and areas of nine.
    return (64 << 10) + 4 * (5 * classes * max(classes, 4) + 9 * classes)


def _check_splits(splits: Mapping[str, SplitMetrics | None], experiment: Experiment) -> None:
    for name, split in splits.items():
        if split is None:
            continue
        if name.startswith("own_") and not experiment.training.ditto:
            raise UserError(
                f"report: {name} is there, but training.ditto is 0, so that no site has a model of its own."
            )
        split.check(experiment.data)
