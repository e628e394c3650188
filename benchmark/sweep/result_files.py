"""The files of a suite's results folder, one by one: their fields, and what is damaged."""

import zipfile
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.schema import parse, read_json

EQUAL = 1e-6
"""How far the adapters of the two engines may be apart, float32."""


class _Record(BaseModel):
    """A part of a result file that the report needs; other fields may be there."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Axes(_Record):
    """Where in the suite's grid a run stands."""

    domain: str
    data: str
    partition: str
    backbone: str
    aggregation: str = "mean"
    method: str = ""
    seed: int | None = None


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Scalars(_Record):
    """One model's metrics on one split, fractions of 1; of some images or the mean over sites."""

    model_config = ConfigDict(extra="allow")

    accuracy: Share
    balanced_accuracy: Share
    auroc: Share | None = None

    def value(self, metric: str) -> float | None:
        """None where the metric is undefined or was not measured."""
        return getattr(self, metric, None)


class Counted(Scalars):
    """Of `count` images."""

    count: int = Field(ge=0)


class Test(_Record):
    """On all sites' test images together, and on each site's."""

    pooled: Counted
    sites: dict[str, Counted]


class Validation(_Record):
    """Mean over sites on their validation images."""

    mean: Scalars


class Final(_Record):
    """What the final aggregate reaches."""

    val: Validation | None = None
    test: Test


class Round(_Record):
    """One round: its bytes of all sites, and the mean over sites of what the model it started from reaches."""

    bytes_in: int = Field(ge=0)
    bytes_out: int = Field(ge=0)
    val: Scalars | None = None


class Verification(_Record):
    """The same cell run by the other engine."""

    engine: str
    max_difference: float = Field(ge=0, le=EQUAL)


class Run(_Record):
    """What every run's file has: a cell's, a baseline's and a tuning trial's."""

    status: Literal["finished", "failed"]
    reason: str | None = None
    name: str
    seconds: dict[str, float] | None = None
    provenance: dict = {}


def with_defaults(experiment: object) -> object:
    """An experiment as it was recorded, with the fields that experiments have got since, whose defaults are what it did; as it
    is if it is none.
    """
    try:
        return parse(Experiment, experiment, "experiment").model_dump(mode="json")
    except UserError:
        return experiment


class Cell(Run):
    """One federated run, see `read_results`."""

    axes: Axes
    engine: str
    experiment: Annotated[dict, BeforeValidator(with_defaults)]
    exchanged_parameters: int | None = Field(default=None, ge=0)
    wire_bytes: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    rounds: list[Round] | None = None
    final: Final | None = None
    peak_memory_bytes: int | None = None
    verification: Verification | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.axes.seed is None or not self.axes.method:
            raise ValueError("a cell's axes have a method and a seed")
        if self.status == "finished":
            for field in ("exchanged_parameters", "wire_bytes", "rounds", "final"):
                if getattr(self, field) is None:
                    raise ValueError(f"a finished cell has '{field}'")
        return self

    @property
    def select_by(self) -> str:
        """The validation metric that the experiment chooses by."""
        return self.experiment.get("select_by", "balanced_accuracy")


class TrialRun(Run):
    """One point of the search for a learning rate, as it was run."""

    class Final(_Record):
        """What it is judged by."""

        val: Validation

    axes: Axes
    final: Final | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.status == "finished" and self.final is None:
            raise ValueError("a finished trial has 'final'")
        return self


class BaselineRow(_Record):
    """A model without a federation."""

    name: str
    test: Test


class Baseline(Run):
    """The models without a federation of one data, partition, backbone and seed."""

    axes: Axes
    rows: list[BaselineRow] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.status == "finished" and self.rows is None:
            raise ValueError("finished baselines have 'rows'")
        return self


class Trial(_Record):
    """One point of the search for a learning rate."""

    learning_rate: float = Field(gt=0)
    head_learning_rate: float | None = None
    options: dict = {}
    status: str
    val: float | None = None


class Tuning(_Record):
    """One method's search; `chosen` is an index into `trials`."""

    axes: Axes
    budget: int
    trials: list[Trial]
    chosen: int | None = None

    @model_validator(mode="after")
    def _chosen_exists(self) -> Self:
        if self.chosen is not None and not 0 <= self.chosen < len(self.trials):
            raise ValueError(f"'chosen' is {self.chosen}, but there are {len(self.trials)} trials")
        return self


class Predictions(NamedTuple):
    """A final aggregate's answers on all sites' test images.

    logits: float64 (N,K); labels: int64 (N,), or uint8 (N,K) for multi-label data.
    """

    logits: np.ndarray
    labels: np.ndarray


KINDS = {"cells": Cell, "tuning": TrialRun, "baselines": Baseline}
"""What the files of each folder hold."""


def read_run(path: Path, kind: str) -> Run:
    """One run's result.

    Raises:
        UserError: naming the file, if it is not there, is damaged or lacks a field, or if it is a finished cell's and its
            predictions are missing, damaged or of another length than its test images.
    """
    run = parse(KINDS[kind], read_json(path), str(path))
    if kind == "cells" and run.status == "finished":
        read_predictions(path.with_suffix(".npz"), run)
    return run


def read_tuning(path: Path) -> list[Tuning]:
    """The choices of a sweep, none if there is no such file. Raises UserError if it is damaged."""
    if not path.exists():
        return []
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: is not a list of what was tuned; remove it, and the next run writes it anew.")
    return [parse(Tuning, entry, f"{path}, entry {index}") for index, entry in enumerate(entries)]


def read_predictions(path: Path, cell: Cell) -> Predictions:
    """Those of a finished cell. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path}: is missing, but {path.with_suffix('.json').name} is finished; rerun that cell.")
    try:
        # Opened here: numpy leaves open what it cannot read.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            logits, labels, site = arrays["logits"].astype(np.float64), arrays["labels"], arrays["site"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as logits, labels and site ({error}).") from None
    count = cell.final.test.pooled.count
    fitting = logits.ndim == 2 and labels.shape in (logits.shape, logits.shape[:1])
    if not fitting or not len(logits) == len(site) == count:
        raise UserError(
            f"{path}: logits {logits.shape}, labels {labels.shape} and site {site.shape} do not fit the {count} test images "
            f"of {path.with_suffix('.json').name}."
        )
    highest = 1 if labels.ndim == 2 else logits.shape[1] - 1
    if not count or not np.isfinite(logits).all() or labels.min() < 0 or labels.max() > highest:
        raise UserError(f"{path}: logits are not all finite, or labels are not within 0 to {highest}.")
    return Predictions(logits, labels)
