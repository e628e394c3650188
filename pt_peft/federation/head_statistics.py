"""The server's end of the stages from which a classifier in closed form follows. Imports no torch.

`pt_peft.federation.site_statistics` is the site's end.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, Tensors, TensorSpec, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import (
    FEDERATION_COUNTS,
    LOSSES,
    Stage,
    When,
    down_specs,
    solved,
    stages,
    up_specs,
    width,
)
from pt_peft.federation.reports import ChoiceReport, SplitMetrics, StatisticsReport, rounded_loss
from pt_peft.federation.server import LARGEST
from pt_peft.privacy.private_moments import Projection, largest, repaired
from pt_peft.statistics.closed_form import Kind, LinearHead, candidates
from pt_peft.statistics.moments import COUNTS, SECOND, SUMS, Float, Moments, class_weights, specs, total
from pt_peft.statistics.temperature import best_temperature
from pt_peft.training.metrics import confusion_metrics

Report = StatisticsReport | ChoiceReport


class SolvedHead(TypedDict):
    """How a classifier was made, in the record of a run and in the header of its adapter."""

    kind: Kind
    penalty: float
    """The one of ``head.penalties`` that was chosen."""
    temperature: float
    """By which its logits were divided; 1 without ``head.temperature``."""
    sites: list[str]
    """Those whose images are in the sums."""
    images: int
    """Their number; with ``privacy.statistics`` with the noise of the counts."""


class HeadStatistics:
    """What the stages at one end of the rounds have given so far.

    Attributes:
        federation_counts: training images of all sites by class, float64 (K,), once the stage ``counts`` is done.
    """

    def __init__(self, experiment: Experiment, exchange: Exchange, when: When):
        """Starts before the first stage.

        Args:
            experiment: that the server runs.
            exchange: the experiment's.
            when: the end of the rounds.
        """
        self.federation_counts: Float | None = None
        self._experiment = experiment
        self._exchange = exchange
        self._when: When = when
        self._stages = [stage for stage in stages(experiment) if stage.when == when]
        self._summed: Moments | None = None
        self._sites: list[str] = []
        self._images = 0
        self._penalty, self._temperature = _middle(experiment.head.penalties), 1.0

    @property
    def class_counts(self) -> Float | None:
        """Training images of all sites by class, float64 (K,), perhaps with noise; None as long as none have come."""
        return self._summed.counts if self._summed else self.federation_counts

    def down(self, stage: Stage) -> Tensors:
        """The statistics that each site is sent in a stage, beside the model."""
        held = {} if self.federation_counts is None else {FEDERATION_COUNTS: self.federation_counts}
        if self._summed:
            held |= self._summed.to_tensors()
        return {key: held[key] for key in down_specs(self._experiment, self._exchange, stage)}

    def asked(self, stage: Stage, sites: Sequence[str]) -> list[str]:
        """Those of `sites` that can answer: only an image that is in the sums can be left out of them."""
        left_out = stage.name == "choice" and self._experiment.head.choose_by == "leave_one_out"
        return [site for site in sites if site in self._sites or not left_out]

    def check(self, stage: Stage, payload: object, report: Report) -> Tensors:
        """Returns what a site sends in a stage if it can be true.

        Raises:
            TensorError: if it cannot.
        """
        tensors = check_tensors(payload, up_specs(self._experiment, self._exchange, stage))
        if COUNTS in tensors and isinstance(report, StatisticsReport):
            if private := self._experiment.privacy.statistics:
                check_release(tensors, report.num_samples, private.noise_multiplier)
            else:
                check_sums(tensors, report.num_samples, self._weights())
        elif LOSSES in tensors and isinstance(report, ChoiceReport):
            tensors = {LOSSES: checked_losses(tensors[LOSSES], report)}
        return tensors

    def take(self, stage: Stage, results: Mapping[str, Tensors], reports: Mapping[str, Report]) -> SolvedHead | None:
        """Adds up what the sites have sent in a stage, and chooses.

        Args:
            stage: the next one.
            results: by site, as `check` has returned them; one or more.
            reports: by site.

        Returns:
            How the classifier is made, after the last stage; None before.
        """
        sites = sorted(results)
        if stage.name == "choice":
            chosen = _best(self._experiment, [reports[site] for site in sites])
            self._penalty = self._experiment.head.penalties[chosen]
            if self._experiment.head.temperature:
                losses = np.sum([results[site][LOSSES][chosen] for site in sites], axis=0)
                self._temperature = best_temperature(losses)
        else:
            self._add_up(stage, {site: results[site] for site in sites}, reports)
            self._sites = sites if stage.name == "moments" else []
        return self.made if stage == self._stages[-1] else None

    def _add_up(self, stage: Stage, results: Mapping[str, Tensors], reports: Mapping[str, Report]) -> None:
        """Adds up the counts or the moments of the sites, in the order of `results`."""
        if stage.name == "counts":
            self.federation_counts = np.sum([one[COUNTS] for one in results.values()], axis=0)
            return
        self._summed = total([Moments.from_tensors(one) for one in results.values()])
        if private := self._experiment.privacy.statistics:
            self._summed = repaired(self._summed, private.noise_multiplier, len(results))
        self._images = round(float(self._summed.counts.sum()))

    @property
    def made(self) -> SolvedHead | None:
        """How the classifier is made, from the last stage on; None without sums."""
        kind = solved(self._experiment, self._when)
        if kind is None or not self._sites:
            return None
        return {
            "kind": kind,
            "penalty": self._penalty,
            "temperature": self._temperature,
            "sites": self._sites,
            "images": self._images,
        }

    def head(self, made: SolvedHead) -> Tensors:
        """The classifier's tensors by key, as the server holds them. Raises ValueError without sums."""
        if self._summed is None:
            raise ValueError("there are no sums to solve for a head")
        return solved_tensors(self._experiment, self._exchange, made, self._summed, self._weights())

    def state(self) -> Tensors:
        """What another server needs to go on, by key."""
        counts = {} if self.federation_counts is None else {FEDERATION_COUNTS: self.federation_counts}
        return counts | (self._summed.to_tensors() if self._summed else {})

    def take_over(self, state: Tensors, sites: Sequence[str]) -> None:
        """Goes on from the `state` of another server.

        Args:
            state: what it had.
            sites: those whose images are in its sums.

        Raises:
            TensorError: if it is not the state of this experiment.
        """
        classes = len(self._experiment.data.classes)
        known = {FEDERATION_COUNTS: TensorSpec((classes,), "float64")}
        if solved(self._experiment, self._when):
            known |= specs(classes, width(self._experiment, self._exchange))
        tensors = check_tensors(state, {key: spec for key, spec in known.items() if key in state})
        self.federation_counts = tensors.pop(FEDERATION_COUNTS, None)
        self._summed, self._sites = (Moments.from_tensors(tensors), [*sites]) if tensors else (None, [])
        self._images = round(float(self._summed.counts.sum())) if self._summed else 0

    def _weights(self) -> Float | None:
        return None if self.federation_counts is None else class_weights(self.federation_counts)


def solutions(
    experiment: Experiment,
    exchange: Exchange,
    kind: Kind,
    summed: Moments,
    weights: Float | None,
    penalties: Sequence[float],
) -> list[LinearHead]:
    """The heads of all features by `penalties`, the same at both ends.

    Args:
        experiment: that both ends have.
        exchange: the experiment's.
        kind: of the head.
        summed: all sites' sums, as `HeadStatistics.down` sends them.
        weights: of the classes, float64 (K,); None for 1.
        penalties: some of ``head.penalties``.
    """
    heads = candidates(kind, summed, weights, penalties)
    if private := experiment.privacy.statistics:
        projection = Projection.of(private, experiment.seed, exchange.features)
        heads = [projection.lifted(head) for head in heads]
    return heads


class Choice(TypedDict):
    """What was chosen."""

    kind: Kind
    penalty: float
    temperature: float


def solved_tensors(
    experiment: Experiment, exchange: Exchange, choice: Choice | SolvedHead, summed: Moments, weights: Float | None
) -> Tensors:
    """The tensors of the classifier that was chosen, by key; `summed` and `weights` as in `solutions`."""
    (head,) = solutions(experiment, exchange, choice["kind"], summed, weights, [choice["penalty"]])
    return head_tensors(exchange, head.at_temperature(choice["temperature"]))


def head_tensors(exchange: Exchange, head: LinearHead) -> Tensors:
    """A classifier's tensors by key, in the dtypes in which they travel."""
    return {
        key: (head.weight if len(exchange.specs[key].shape) > 1 else head.bias).astype(exchange.specs[key].dtype)
        for key in exchange.head
    }


def check_counts(key: str, counts: Float) -> None:
    """Raises TensorError unless `counts` are whole numbers of 0 or more that float64 has exactly."""
    if (counts < 0).any() or (counts != np.floor(counts)).any() or (counts > 2**53).any():
        raise TensorError(f"tensor '{key}' is not of whole numbers of 0 or more, as counts are", key)


def check_sums(tensors: Tensors, images: int, weights: Float | None = None, least: int = 1) -> None:
    """Checks the sums of a site, of a stage ``counts`` or ``moments``.

    Args:
        tensors: by key, as their specs say.
        images: that the site reports to be in them.
        weights: of the classes, float64 (K,), by which the site was to weigh its images; None for 1.
        least: fewest images of a class that is in them.

    Raises:
        TensorError: if they are not sums over so many images, none of whose features is larger than `LARGEST`.
    """
    counts = tensors[COUNTS]
    check_counts(COUNTS, counts)
    if counts.sum() != images:
        raise TensorError(f"tensor '{COUNTS}' counts {counts.sum():g} images, the report {images}", COUNTS)
    if few := [int(count) for count in counts if 0 < count < least]:
        raise TensorError(f"tensor '{COUNTS}' has a class of {few[0]} image(s), not of {least} or more", COUNTS)
    if SUMS not in tensors:
        return
    weight = counts.sum() if weights is None else (weights * counts).sum()
    for key, most in ((SUMS, LARGEST * counts[:, None]), (SECOND, LARGEST**2 * weight)):
        if (np.abs(tensors[key]) > most).any():
            raise TensorError(f"tensor '{key}' has larger values than sums over its images can have", key)


def check_release(tensors: Tensors, images: int, noise_multiplier: float) -> None:
    """Raises TensorError if a site's release has values that so many images and their noise do not have."""
    for key, value in tensors.items():
        if (np.abs(value) > largest(images, noise_multiplier)).any():
            raise TensorError(f"tensor '{key}' has larger values than sums over {images} image(s) and noise have", key)


def checked_losses(losses: Float, report: ChoiceReport) -> Float:
    """`losses` as they may leave: their means over the images are rounded like any loss that a site reports.

    So many exact sums of known functions of the logits would give the logits of each image.

    Raises:
        TensorError: unless they are sums over the images that `report` has metrics of.
    """
    images = report.candidates[0].count if report.candidates else 0
    if (losses < 0).any() or (losses > LARGEST * images).any():
        raise TensorError(f"tensor '{LOSSES}' has values that are no cross-entropy of {images} image(s)", LOSSES)
    means = [rounded_loss(one) for one in (losses / max(images, 1)).flat]
    return np.reshape(np.array(means, dtype=np.float64), losses.shape) * images


def _middle(penalties: Sequence[float]) -> float:
    return sorted(penalties)[(len(penalties) - 1) // 2]


def _best(experiment: Experiment, reports: Sequence[Report]) -> int:
    """The place of the best of ``head.penalties``."""
    penalties = experiment.head.penalties
    found = [report.candidates for report in reports if isinstance(report, ChoiceReport) and report.candidates]
    if not found:
        return penalties.index(_middle(penalties))
    scores = [_score(experiment, [candidates[place] for candidates in found]) for place in range(len(penalties))]
    return max(range(len(penalties)), key=lambda place: (scores[place], penalties[place]))


def _score(experiment: Experiment, sites: Sequence[SplitMetrics]) -> float:
    """One candidate's ``select_by`` over the images of all sites together; ``auroc`` is the mean over sites."""
    if experiment.select_by == "auroc":
        areas = [one.auroc for one in sites if one.auroc is not None]
        return sum(areas) / len(areas) if areas else 0.0
    confusion = np.sum([np.asarray(one.confusion, np.int64) for one in sites], axis=0)
    value = confusion_metrics(confusion, experiment.data.task).get(experiment.select_by)
    return 0.0 if value is None else float(value)
