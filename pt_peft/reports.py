"""What a site reports beside its tensors: the only other thing that leaves it. Validated at both ends.

Imports no torch.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from pt_peft.errors import UserError
from pt_peft.metrics import confusion_matrix_metrics
from pt_peft.schema import Strict

Count = Annotated[int, Field(ge=0, lt=2**53)]
Loss = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SplitMetrics(Strict):
    """Metrics of one model on one split, see `pt_peft.metrics`."""

    count: Annotated[int, Field(ge=1, lt=2**53)]
    """Images."""
    loss: Loss
    """Mean cross-entropy, nats."""
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    auroc: Share | None
    """Null where no class has both positives and negatives."""
    ece: Share
    """Expected calibration error, 15 bins."""
    confusion: Annotated[list[Annotated[list[Count], Field(max_length=1000)]], Field(max_length=1000)]
    """Images by label (rows) and prediction (columns)."""


    def check_classes(self, classes: int) -> None:
        """Raises UserError unless the confusion matrix is (classes, classes), counts every image once, and gives the
        metrics that are reported beside it."""
        shape = [len(row) for row in self.confusion]
        total = sum(map(sum, self.confusion))
        if shape != [classes] * classes or total != self.count:
            raise UserError(
                f"report: the confusion matrix has rows of {shape} counts that sum to {total}; {classes} rows of {classes} "
                f"counts that sum to {self.count} would be right."
            )
        for name, value in confusion_matrix_metrics(np.array(self.confusion, dtype=np.int64)).items():
            if abs(getattr(self, name) - value) > 1e-6:
                raise UserError(f"report: {name} is {getattr(self, name)}, but the confusion matrix gives {value}.")


class TrainingReport(Strict):
    """A site's report of a round."""

    num_samples: Annotated[int, Field(ge=1, lt=2**40)]
    """Training images of one local epoch."""
    train_loss: Loss
    seconds: Seconds
    """Wall time of the site's work in the round."""
    val: SplitMetrics | None
    """Of the model the round started from; null if the site has no validation images."""

    def check_classes(self, classes: int) -> None:
        """Raises UserError as `SplitMetrics.check_classes` does."""
        if self.val:
            self.val.check_classes(classes)


class EvaluationReport(Strict):
    """A site's report of an evaluation; null for a split without images."""

    val: SplitMetrics | None = None
    test: SplitMetrics | None = None
    seconds: Seconds

    def check_classes(self, classes: int) -> None:
        """Raises UserError as `SplitMetrics.check_classes` does."""
        for split in filter(None, (self.val, self.test)):
            split.check_classes(classes)
