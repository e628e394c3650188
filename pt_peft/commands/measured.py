"""What suites of the benchmark have found, as far as advice needs it: a small file that comes with the package."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pt_peft import schema
from pt_peft.schema import Strict

PACKAGED = Path(__file__).parents[1] / "embedded" / "measurements.json"
"""Written by ``python -m benchmark summary`` from the result files in the repository."""


class Interval(Strict):
    """A mean over folds or seeds with its 95 % t interval."""

    mean: float
    low: float | None
    """null, as `high`, for a single run."""
    high: float | None
    runs: int = Field(ge=1)


class Measured(Strict):
    """What one method reached in one place of a suite. Metrics are of all sites' test images, of the final round."""

    suite: str
    data: str
    partition: str
    backbone: str
    """Its name in the suite."""
    variant: str
    method: str
    imbalance: str
    """``training.imbalance``."""
    rounds: int = Field(ge=1)
    image_size: int = Field(ge=1)
    """Pixels."""
    exchanged_parameters: int = Field(ge=0)
    folds: bool
    """Whether each run has test images of its own; else runs differ in the seed."""
    balanced_accuracy: Interval
    """Share."""
    auroc: Interval | None
    """null where it is undefined."""
    less: dict[str, Interval]
    """Balanced accuracy less another's in the same runs, points: ``pooled`` training, ``the best site alone``, another
    method's name, or ``variant`` and the name of another variant."""
    commits: Annotated[tuple[str, ...], Field(min_length=1)]
    """Of the code that ran."""


class Measurements(Strict):
    """All that has been measured."""

    measured: tuple[Measured, ...]


def read_measurements(paths: list[Path]) -> list[Measured]:
    """What the files say, the packaged one first. Raises UserError for a file that is not of this form."""
    return [one for path in (PACKAGED, *paths) for one in schema.read(Measurements, path).measured]
