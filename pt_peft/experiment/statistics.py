"""Rounds of statistics: which stages an experiment has, and what travels in each. Imports no torch.

A head that is solved in closed form (section ``head``) takes up to three stages, each one exchange with a quorum:

1. ``counts``: each site sends its training images by class, from whose sum the weights of the classes follow.
2. ``moments``: each site sends sums of its features (`pt_peft.statistics.moments`).
3. ``choice``: each site is sent the sums over all sites, solves a head for each penalty as the server does, and sends
   how good each is. There is no such stage with one penalty and no temperature.

Those of ``head.start`` come before the first round, those of ``head.finish`` after the last. ``counts`` comes before
the first round also where the server weighs what sites send by their images of each class (`weighs_by_class`).
"""

from dataclasses import dataclass
from typing import Literal

from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.round_bytes import RoundBytes, round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors, TensorSpec, payload_bytes
from pt_peft.experiment.fields import ExperimentFields
from pt_peft.statistics import moments
from pt_peft.statistics.closed_form import Kind
from pt_peft.statistics.temperature import TEMPERATURES

When = Literal["start", "finish"]
"""The end of the rounds at which a head is solved: before the first, or after the last."""
StageName = Literal["counts", "moments", "choice"]

PREFIX = "statistics/"
"""Of the keys of all statistics, which no tensor of a model has."""
FEDERATION_COUNTS = f"{PREFIX}federation_counts"
"""Key of the training images of all sites by class, float64 (K,), which travel down."""
LOSSES = f"{PREFIX}losses"
"""Key of a site's sums of cross-entropy, float64 (candidates, temperatures), nats."""

KEYS = (FEDERATION_COUNTS, moments.COUNTS, moments.SUMS, moments.SECOND, LOSSES)
"""All keys of statistics."""


@dataclass(frozen=True)
class Stage:
    """One exchange of statistics."""

    when: When
    name: StageName
    round_number: int
    """Number of the rounds before it."""

    def __str__(self) -> str:
        return f"{self.name} at the {self.when}"


def solved(experiment: ExperimentFields, when: When) -> Kind | None:
    """How the head is solved at that end of the rounds; None if it is not."""
    asked = experiment.head.start if when == "start" else experiment.head.finish
    return asked if asked in ("ridge", "lda") else None


def weighs_by_class(experiment: ExperimentFields) -> bool:
    """Whether the server weighs what the sites send by their training images of each class."""
    by_class = isinstance(experiment.aggregation, Mean) and experiment.aggregation.weighting == "class_samples"
    return by_class or experiment.training.imbalance == "federation_weights"


def stages(experiment: ExperimentFields) -> tuple[Stage, ...]:
    """All stages of an experiment, in order."""
    found: list[Stage] = []
    ends: tuple[tuple[When, int], ...] = (("start", 0), ("finish", experiment.federation.rounds))
    for when, number in ends:
        kind = solved(experiment, when)
        names: list[StageName] = []
        if kind == "ridge" or (when == "start" and weighs_by_class(experiment)):
            names.append("counts")
        if kind:
            names.append("moments")
            if len(experiment.head.penalties) > 1 or experiment.head.temperature:
                names.append("choice")
        found += [Stage(when, name, number) for name in names]
    return tuple(found)


def stage_of(experiment: ExperimentFields, name: object, round_number: int | None) -> Stage | None:
    """The stage of that name after so many rounds; None if the experiment has none."""
    return next((one for one in stages(experiment) if (one.name, one.round_number) == (name, round_number)), None)


def up_specs(experiment: ExperimentFields, exchange: Exchange, stage: Stage) -> dict[str, TensorSpec]:
    """Specs of what a site sends in a stage, which no codec encodes."""
    classes = len(experiment.data.classes)
    if stage.name == "counts":
        return {moments.COUNTS: TensorSpec((classes,), "float64")}
    if stage.name == "moments":
        return moments.specs(classes, width(experiment, exchange))
    if not experiment.head.temperature:
        return {}
    return {LOSSES: TensorSpec((len(experiment.head.penalties), len(TEMPERATURES)), "float64")}


def down_specs(experiment: ExperimentFields, exchange: Exchange, stage: Stage) -> dict[str, TensorSpec]:
    """Specs of the statistics that a site is sent in a stage, beside the model, which no codec encodes."""
    classes = len(experiment.data.classes)
    if stage.name == "counts":
        return {}
    weighted = solved(experiment, stage.when) == "ridge"
    specs = {FEDERATION_COUNTS: TensorSpec((classes,), "float64")} if weighted else {}
    return specs if stage.name == "moments" else {**specs, **moments.specs(classes, width(experiment, exchange))}


def width(experiment: ExperimentFields, exchange: Exchange) -> int:
    """Number of features of an image that the sums are of: all, or those of a projection."""
    private = experiment.privacy.statistics
    return (private.projection if private else None) or exchange.features


def sends_model(stage: Stage) -> bool:
    """Whether a site is sent the model in a stage: to count images takes none."""
    return stage.name != "counts"


def stage_bytes(experiment: ExperimentFields, exchange: Exchange, stage: Stage) -> RoundBytes:
    """The bytes of a stage: exact for tensors, the most for ciphertexts.

    Args:
        experiment: that has the stage.
        exchange: what the site exchanges, at its own rank.
        stage: one of `stages`.
    """
    up, down = up_specs(experiment, exchange, stage), down_specs(experiment, exchange, stage)
    encrypted = experiment.encryption is not None
    if encrypted:
        counts = {key: down.pop(key) for key in (FEDERATION_COUNTS,) if key in down}
        down_bytes = Layout(counts).most_bytes + Layout(down).most_bytes
    else:
        down_bytes = payload_bytes(down)
    if sends_model(stage):
        down_bytes += round_bytes(exchange, experiment.payload, stage.round_number, encrypted=encrypted).down
    hidden = encrypted and stage.name != "choice"
    return RoundBytes(down=down_bytes, up=Layout(up).most_bytes if hidden else payload_bytes(up))


def parted(payload: Tensors) -> tuple[Tensors, Tensors]:
    """What has come down, as the model's tensors and the statistics."""
    statistics = {key: value for key, value in payload.items() if key.startswith(PREFIX)}
    return {key: value for key, value in payload.items() if key not in statistics}, statistics
