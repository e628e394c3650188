"""The steps and the epsilon of an experiment's rounds. Imports no torch."""

import math

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.privacy.accounting import Accountant, Steps, epsilon


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
        if sample.delta * images >= 1:
            raise UserError(
                f"experiment: field 'privacy.sample.delta' is {sample.delta:g}, but the site has {images} training "
                f"images: who gives away one of them in clear keeps such a promise; less than {1 / images:.2g} would "
                "be right."
            ).told_as(reasons.ExperimentInvalid(field="privacy.sample.delta"))
        trainings = 2 if training.ditto else 1  # Ditto's own model is trained on the same images
        count = math.ceil(images / training.batch_size) * training.local_epochs * trainings
        return [Steps(rate=sampling_rate(experiment, images), noise_multiplier=sample.noise_multiplier, count=count)]
    if privacy.client and privacy.client.where == "sites":
        return [Steps(rate=1.0, noise_multiplier=privacy.client.share(experiment.federation.min_sites), count=1)]
    return []


def accountant_of(experiment: Experiment) -> Accountant:
    """The accountant of what a site does itself."""
    return experiment.privacy.sample.accountant if experiment.privacy.sample else "rdp"


def delta_of(experiment: Experiment) -> float:
    """The delta of what a site does itself. Raises ValueError if the experiment asks for no privacy."""
    private = experiment.privacy.sample or experiment.privacy.client
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
