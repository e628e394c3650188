"""What must hold of a suite's results before anything is concluded from them: if it does not, training was at fault."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from pt_peft.schema import Strict

GateMetric = Literal["accuracy", "balanced_accuracy", "auroc", "macro_f1"]


class Floor(Strict):
    """Wherever in the grid it applies, a model reaches this much on test images, mean over seeds or folds.

    ``data``, ``partition``, ``backbone`` and ``variant`` say where: names of the suite's, or patterns such as
    ``dirichlet-*``.
    """

    of: str
    """A method of the suite, or the baseline ``pooled``."""
    metric: GateMetric = "balanced_accuracy"
    """On all sites' test images together."""
    at_least: float = Field(gt=0, le=1)
    data: str = "*"
    partition: str = "*"
    backbone: str = "*"
    variant: str = "*"

    def covers(self, place: Mapping[str, str]) -> bool:
        """Whether it applies to a place of the grid."""
        return all(fnmatchcase(place[axis], getattr(self, axis)) for axis in place)


class NotBelow(Strict):
    """No method ends below this one, such as its own linear probe.

    It is below where the mean of the differences, paired by seed or fold, is negative.
    """

    method: str = "linear_probe"
    metric: GateMetric = "balanced_accuracy"
    panels: int = Field(default=1, ge=0)
    """In so many of the suite's panels (data, partition and variant) a method may be below nevertheless."""


class Gates(Strict):
    """The gates of a suite."""

    floors: dict[Annotated[str, Field(min_length=1, max_length=100)], Floor] = Field(default={})
    """By a name for what each shows."""
    not_below: NotBelow | None = None
    rates_inside: bool = False
    """Whether no learning rate that trials chose may be the lowest or highest of those tried."""
