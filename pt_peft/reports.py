"""What a site reports beside its tensors: the only other thing that leaves it. Validated at both ends.

Imports no torch.
"""

from typing import Annotated

from pydantic import Field

from pt_peft.errors import UserError
from pt_peft.schema import Strict

Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SplitMetrics(Strict):
    """Metrics of one model on one split, see `pt_peft.metrics`."""

    count: Count
    """Images."""
    loss: Finite
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
        """Raises UserError unless the confusion matrix is (classes, classes) and counts every image once."""
        shape = [len(row) for row in self.confusion]
        total = sum(map(sum, self.confusion))
        if shape != [classes] * classes or total != self.count:
            raise UserError(
                f"report: the confusion matrix has rows of {shape} counts that sum to {total}; {classes} rows of {classes} "
                f"counts that sum to {self.count} would be right."
            )


class TrainingReport(Strict):
    """A site's report of a round."""

    num_samples: Annotated[int, Field(ge=1, lt=2**40)]
    """Training images of one local epoch."""
    train_loss: Finite
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
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
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def check_classes(self, classes: int) -> None:
        """Raises UserError as `SplitMetrics.check_classes` does."""
        for split in filter(None, (self.val, self.test)):
            split.check_classes(classes)
