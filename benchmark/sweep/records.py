"""What a suite's result file holds: a line is one of these records, written and read by the same definition.

The first line is the suite; then come the chosen settings and the runs. A run is a cell, a trial, a baseline, or the
failure of one of them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from benchmark.oracle.predictions import Predictions
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Precision
from pt_peft.experiment.statistics import StageName, When
from pt_peft.federation.reports import SplitMetrics
from pt_peft.schema import Strict, parse

VERSION: Literal[3] = 3
"""Version of this schema. A change that makes old files unreadable, or read wrongly, raises it."""
EQUAL = 1e-6
"""How far the adapters of the two engines may be apart, float32."""

Engine = Literal["flare", "reference"]
"""FLARE's simulator, or the plain loop."""
RunKind = Literal["cell", "trial", "baseline"]
"""A federated run, one that settings are chosen by, or one without a federation."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]


class ChoiceAxes(Strict):
    """Where in a suite's grid settings are chosen."""

    domain: str
    data: str
    partition: str
    backbone: str
    variant: str
    method: str


class Axes(ChoiceAxes):
    """Where in a suite's grid a run stands."""

    seed: int

    @property
    def run(self) -> str:
        """Name of the run that stands there; a trial's goes on with ``.trial-`` and its number."""
        return ".".join([self.data, self.partition, self.backbone, self.variant, self.method, str(self.seed)])


class SuiteRecord(Strict):
    """The first line of a result file."""

    kind: Literal["suite"] = "suite"
    version: Literal[3] = VERSION
    """Version of this schema."""
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]{0,99}$")
    """The suite's name; its report's folder has it too."""
    suite: dict[str, JsonValue]
    """The suite's fields, those of the suite that it extends included."""


class Scalars(Strict):
    """Metrics of one model on one site's images, or their mean over sites. Those that are not defined are left out."""

    count: int | None = Field(default=None, ge=0)
    """Images; none for a mean over sites."""
    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Mean cross-entropy, nats."""
    accuracy: Share
    balanced_accuracy: Share
    auroc: Share | None = None
    macro_f1: Share | None = None
    ece: Share | None = None
    """Expected calibration error."""
    quadratic_kappa: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """Cohen's kappa with quadratic weights, for ``ordinal`` alone."""
    mean_absolute_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """In grades, for ``ordinal`` alone."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


def metric_of(metrics: Scalars | SplitMetrics, name: str) -> float | None:
    """The metric `name`; None where it is undefined or was not measured."""
    return getattr(metrics, name, None)


class Validation(Strict):
    """Metrics on the validation images of the sites that have some."""

    mean: Scalars
    """Unweighted, over sites."""
    sites: dict[str, Scalars]
    pooled: Scalars | None = None
    """Of one model on all sites' images together; null where each site has a model of its own, and in older files."""

    @property
    def judged(self) -> Scalars:
        """What trials are compared by: a mean over sites would hang on the few images of the smallest."""
        return self.pooled or self.mean


class FinalTest(Strict):
    """Metrics on test images."""

    pooled: SplitMetrics
    """All sites' images together."""
    sites: dict[str, Scalars]


class SiteRound(Strict):
    """What a site reports of a round."""

    num_samples: int = Field(ge=0)
    train_loss: Annotated[float, Field(allow_inf_nan=False)] | None
    """Mean cross-entropy, nats; null under differential privacy."""
    seconds: Seconds
    val: Scalars | None
    """Metrics of the model that the round started from; null without validation images."""


class Round(Strict):
    """One round of a federation."""

    round: int = Field(ge=0)
    """Counted from 0."""
    seconds: Seconds
    bytes_in: Bytes
    """Bytes sent to all sites."""
    bytes_out: Bytes
    """Bytes sent by all sites."""
    sites: dict[str, SiteRound]
    val: Scalars | None
    """Mean of the sites' `val`."""


class StageBytes(Strict):
    """What a stage of statistics takes, see `pt_peft.experiment.statistics`; for ciphertexts the most."""

    when: When
    stage: StageName
    bytes_in: Bytes
    """Bytes sent to all sites."""
    bytes_out: Bytes
    """Bytes sent by all sites."""


class Final(Strict):
    """What the final aggregate reaches."""

    val: Validation | None
    """Metrics on validation images; null if no site has some."""
    test: FinalTest


class Verification(Strict):
    """The same cell, run by the other engine."""

    engine: Engine
    max_difference: float = Field(ge=0, le=EQUAL)
    """Greatest difference between the two final aggregates."""


class RunProvenance(Strict):
    """Which code ran where and when."""

    commit: str
    dirty: bool
    """Whether the working tree had changes that are not in the commit."""
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    time: str
    """UTC, ISO 8601."""


def with_defaults(experiment: object) -> object:
    """A recorded `experiment` with defaults for fields that experiments have gained since; unchanged if not valid.

    Files were cropped before there was ``data.fit``, whose default is another.
    """
    said = cast(dict[str, Any], experiment) if isinstance(experiment, dict) else {}
    data = said.get("data")
    if isinstance(data, dict) and data.get("source") == "site":
        said = {**said, "data": {"fit": "crop", **data}}
    try:
        return parse(Experiment, said, "experiment").model_dump(mode="json")
    except UserError:
        return experiment


OF_THE_FEDERATION = ("aggregation", "server_optimizer", "payload", "encryption")
"""Sections of an experiment that baselines do not have."""


def without_federation(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What of some or all sections of an experiment its baselines depend on, whose method is the suite's to choose.

    Of ``federation`` that is the number of rounds.
    """
    kept = {name: fields for name, fields in sections.items() if name not in (*OF_THE_FEDERATION, "method")}
    if "federation" in kept:
        kept["federation"] = {name: value for name, value in kept["federation"].items() if name == "rounds"}
    return {name: fields for name, fields in kept.items() if fields != {}}


def meaning_with_defaults(site_data: object) -> object:
    """A recorded meaning of images with defaults for fields that it has gained since; unchanged if not valid."""
    try:
        return parse(SiteData, site_data, "site_data").meaning()
    except UserError:
        return site_data


class Run(Strict):
    """What is known of every run."""

    name: str
    """Unique in the suite."""
    axes: Axes
    engine: Engine
    experiment: Annotated[dict[str, JsonValue], BeforeValidator(with_defaults)]
    site_data: Annotated[dict[str, JsonValue], BeforeValidator(meaning_with_defaults)]
    """What the images of all sites mean (`SiteData.meaning`): with the experiment, what was run."""
    seconds: dict[str, Seconds]
    """Wall time by phase, and under ``total``."""
    compiled: bool = False
    """Whether training steps ran through torch's compiler, if it could compile the model."""
    precision: Precision | None = None
    """What was computed in; null of a run that failed, and in files that know no ``training.precision`` ``auto``, whose
    experiments say it."""
    peak_memory_bytes: Bytes | None
    """Proportional set size (PSS) of all processes; null where it is not known."""
    provenance: RunProvenance

    @property
    def folds(self) -> bool:
        """Whether its seed is the number of a fold."""
        data = self.experiment.get("data")
        return isinstance(data, dict) and bool(data.get("fold"))

    @property
    def select_by(self) -> str:
        """The validation metric that the experiment chooses by."""
        return str(self.experiment.get("select_by", "balanced_accuracy"))


def _predictions(value: object) -> Predictions:
    """Raises ValueError unless these are predictions, packed or not."""
    return value if isinstance(value, Predictions) else Predictions.unpack(str(value))


class CellRecord(Run):
    """A finished federated run."""

    kind: Literal["cell"] = "cell"
    exchanged_parameters: int = Field(ge=0)
    """Values that a site sends in a round, head included."""
    rounds: list[Round]
    statistics: tuple[StageBytes, ...] = ()
    """In order; empty without a classifier in closed form and without counts of classes."""
    class_counts: dict[str, list[int]] | None = None
    """Training images of each class, by site; null for ``multilabel``, and in older files."""
    final: Final
    verification: Verification | None
    """The other engine's run; null for a cell that one engine ran."""
    predictions: Annotated[
        Predictions,
        PlainValidator(_predictions),
        PlainSerializer(Predictions.pack, return_type=str),
    ]
    """Predictions on all sites' test images; logits float16, from which `final` was computed."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count, kept = self.final.test.pooled.count, len(self.predictions.logits)
        if count != kept:
            raise ValueError(f"'predictions' has {kept} images, but 'final.test.pooled' counts {count}")
        return self

    @property
    def bytes_in(self) -> int:
        """Bytes sent to all sites in all rounds and stages."""
        return sum(one.bytes_in for one in (*self.rounds, *self.statistics))

    @property
    def bytes_out(self) -> int:
        """Bytes sent by all sites in all rounds and stages."""
        return sum(one.bytes_out for one in (*self.rounds, *self.statistics))

    @property
    def wire_bytes(self) -> int:
        """Bytes in both directions, all sites, all rounds and stages."""
        return self.bytes_in + self.bytes_out


class TrialRecord(Run):
    """A finished run that settings are chosen by. No test image is looked at."""

    kind: Literal["trial"] = "trial"
    val: Validation


class BaselineRow(Strict):
    """A model that no federation trained."""

    name: str
    test: FinalTest


class BaselineRecord(Run):
    """The finished models without a federation of one data, partition, backbone, variant and seed."""

    kind: Literal["baseline"] = "baseline"
    rows: list[BaselineRow]


class FailureRecord(Run):
    """A run that did not finish. The next call runs it again."""

    kind: Literal["failure"] = "failure"
    run_kind: RunKind
    """What did not finish."""
    reason: str


class TriedSettings(Strict):
    """One trial of a choice."""

    learning_rate: float = Field(gt=0)
    head_learning_rate: float | None
    """Learning rate of the head; null: `learning_rate`."""
    options: dict[str, dict[str, JsonValue]]
    """Options of the method, as in ``method.options``."""
    val: float | None
    """The final validation metric; null for a trial that failed, and where the metric is undefined."""


class ChoiceRecord(Strict):
    """What one method tried and what was chosen."""

    kind: Literal["choice"] = "choice"
    axes: ChoiceAxes
    trials: list[TriedSettings] = Field(min_length=1)
    chosen: int | None
    """Index into `trials` of the best; null if none has a value."""

    @model_validator(mode="after")
    def _chosen_exists(self) -> Self:
        if self.chosen is not None and not 0 <= self.chosen < len(self.trials):
            raise ValueError(f"'chosen' is {self.chosen}, but there are {len(self.trials)} trials")
        return self

    @property
    def settings(self) -> TriedSettings | None:
        """The trial that was chosen."""
        return None if self.chosen is None else self.trials[self.chosen]

    @property
    def edge(self) -> Literal["lowest", "highest"] | None:
        """Whether the chosen learning rate is the lowest or highest of several tried with the same options.

        A trial that failed, as one that diverges does, counts as tried.
        """
        chosen = self.settings
        rates = sorted({one.learning_rate for one in self.trials if chosen and one.options == chosen.options})
        if not chosen or len(rates) < 2:
            return None
        if chosen.learning_rate == rates[0]:
            return "lowest"
        return "highest" if chosen.learning_rate == rates[-1] else None


AnyRun = CellRecord | TrialRecord | BaselineRecord | FailureRecord
Record = SuiteRecord | ChoiceRecord | AnyRun
RECORDS: dict[str, type[Record]] = {
    "suite": SuiteRecord,
    "choice": ChoiceRecord,
    "cell": CellRecord,
    "trial": TrialRecord,
    "baseline": BaselineRecord,
    "failure": FailureRecord,
}
"""Records by their `kind`."""
