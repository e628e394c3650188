"""The steps and the epsilon of an experiment's rounds. Imports no torch."""

import math
from dataclasses import dataclass

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.privacy import SamplePrivacy, StatisticsPrivacy
from pt_peft.experiment.statistics import Stage, stages
from pt_peft.privacy.accounting import Accountant, Steps, epsilon


@dataclass(frozen=True)
class Plan:
    """Noisy steps that a site is to take in a job."""

    rounds: int
    """Rounds of training."""
    releases: int
    """Releases of sums of features."""
    steps: list[Steps]

    def __str__(self) -> str:
        released = f"{self.releases} release(s) of statistics"
        if not self.releases:
            return f"{self.rounds} round(s)"
        return f"{self.rounds} round(s) and {released}" if self.rounds else released


def sampling_rate(experiment: Experiment, images: int) -> float:
    """Probability with which each of a site's training images is in a step's batch."""
    return min(1.0, experiment.training.batch_size / images)


def steps_of_a_round(experiment: Experiment, images: int) -> list[Steps]:
    """The noisy steps that a site itself takes in one round; empty if it adds no noise.

    With both kinds of privacy, the site's noise on its update comes on top of what is private for each image already,
    and costs that image nothing.

    Args:
        experiment: the job's.
        images: number of the site's training images.

    Raises:
        UserError: if ``delta`` is no promise for so few images.
    """
    privacy, training = experiment.privacy, experiment.training
    if sample := privacy.sample:
        _check_delta(sample, "sample", images)
        trainings = 2 if training.ditto else 1  # Ditto's own model is trained on the same images
        count = math.ceil(images / training.batch_size) * training.local_epochs * trainings
        return [Steps(rate=sampling_rate(experiment, images), noise_multiplier=sample.noise_multiplier, count=count)]
    if privacy.client and privacy.client.where == "sites":
        return [Steps(rate=1.0, noise_multiplier=privacy.client.share(experiment.federation.min_sites), count=1)]
    return []


def steps_of_a_release(experiment: Experiment, images: int) -> list[Steps]:
    """The noisy step that a release of sums of features is; empty if it adds no noise.

    Raises:
        UserError: if ``delta`` is no promise for so few images.
    """
    statistics = experiment.privacy.statistics
    if statistics is None:
        return []
    _check_delta(statistics, "statistics", images)
    return [Steps(rate=1.0, noise_multiplier=statistics.noise_multiplier, count=1)]


def _check_delta(private: SamplePrivacy | StatisticsPrivacy, name: str, images: int) -> None:
    if private.delta * images >= 1:
        raise UserError(
            f"experiment: field 'privacy.{name}.delta' is {private.delta:g}, but the site has {images} training "
            f"images: who gives away one of them in clear keeps such a promise; less than {1 / images:.2g} would "
            "be right."
        ).told_as(reasons.ExperimentInvalid(field=f"privacy.{name}.delta"))


def plan(experiment: Experiment, images: int, rounds: int, releases: int) -> Plan:
    """So many rounds and releases.

    Args:
        experiment: the job's.
        images: number of the site's training images.
        rounds: of training.
        releases: of sums of features.

    Raises:
        UserError: as `steps_of_a_round` and `steps_of_a_release` do.
    """
    a_round = steps_of_a_round(experiment, images) if rounds else []
    a_release = steps_of_a_release(experiment, images) if releases else []
    times = [(rounds, one) for one in a_round] + [(releases, one) for one in a_release]
    steps = [one.model_copy(update={"count": times_taken * one.count}) for times_taken, one in times]
    return Plan(rounds if a_round else 0, releases if a_release else 0, steps)


def plan_from(experiment: Experiment, images: int, at: Stage | int = 0) -> Plan:
    """All that is ahead of a site, with what it is about to do.

    Args:
        experiment: the job's.
        images: number of the site's training images.
        at: the stage, or the number of the round, that comes next; what comes before the first round counts only where
            it is that stage.

    Raises:
        UserError: as `plan` does.
    """
    released = [stage for stage in stages(experiment) if stage.name == "moments"]
    if isinstance(at, Stage):
        number, ahead = at.round_number, [stage for stage in released if stage.round_number >= at.round_number]
    else:
        number, ahead = at, [stage for stage in released if stage.when == "finish"]
    return plan(experiment, images, experiment.federation.rounds - number, len(ahead))


def accountant_of(experiment: Experiment) -> Accountant:
    """The accountant of what a site does itself."""
    return experiment.privacy.sample.accountant if experiment.privacy.sample else "rdp"


def delta_of(experiment: Experiment) -> float:
    """The delta of what a site does itself. Raises ValueError if the experiment asks for no privacy."""
    private = experiment.privacy.sample or experiment.privacy.statistics or experiment.privacy.client
    if private is None:
        raise ValueError("the experiment asks for no privacy")
    return private.delta


def client_epsilon(experiment: Experiment, rounds: int) -> float | None:
    """Epsilon of the first `rounds` rounds' aggregates for a whole site; None if the experiment claims none.

    It holds if ``federation.min_sites`` sites, and for ``where`` ``server`` the server, have added their noise.
    """
    client = experiment.privacy.client
    if client is None or not experiment.privacy.claimed:
        return None
    return epsilon([Steps(rate=1.0, noise_multiplier=client.noise_multiplier, count=rounds)], client.delta)
