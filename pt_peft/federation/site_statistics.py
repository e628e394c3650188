"""The site's end of a stage of statistics, independent of the transport.

`pt_peft.experiment.statistics` says what travels in each stage; `pt_peft.federation.head_statistics` is the server's
end.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue

from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.exchange.tensors import TensorError, Tensors, TensorSpec, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import (
    FEDERATION_COUNTS,
    Stage,
    down_specs,
    solved,
    up_specs,
)
from pt_peft.federation.head_statistics import check_counts, solutions
from pt_peft.federation.server import LARGEST
from pt_peft.privacy.draws import draws_for
from pt_peft.privacy.private_moments import Projection, private_moments
from pt_peft.statistics.closed_form import leave_one_out
from pt_peft.statistics.moments import COUNTS, Float, Moments, class_counts, class_weights, moments
from pt_peft.statistics.temperature import log_losses
from pt_peft.training.metrics import evaluate_predictions
from pt_peft.training.trainer import LocalTrainer


@dataclass(frozen=True)
class SiteAnswer:
    """What a site answers in a stage."""

    tensors: Tensors
    """What travels up."""
    report: dict[str, JsonValue]
    """Fields of the report, a `StatisticsReport` or a `ChoiceReport`, but for ``seconds`` and ``code``."""


def answer(
    trainer: LocalTrainer,
    stage: Stage,
    data: SiteData,
    model: Tensors,
    received: object,
    least: int = 1,
    least_evaluated: int = 1,
    *,
    site: str = "",
    secret: bool = False,
) -> SiteAnswer:
    """Computes what a site sends in a stage.

    Args:
        trainer: the site's.
        stage: of the experiment.
        data: the site's images.
        model: the federation's model as the site has it, by canonical key; for ``counts`` it may be empty.
        received: the statistics that have come down.
        least: fewest training images of a class, ``limits.min_images_per_class``; classes with fewer are left out. With
            ``privacy.statistics`` none is: that would tell of them without noise.
        least_evaluated: fewest images whose metrics may leave, ``limits.min_evaluated_images``.
        site: its name, which tells its noise from others' where that is not secret.
        secret: whether noise is secret whatever the experiment says, by ``limits.secret_draws``.

    Raises:
        TensorError: if `received` is not what it should be.
    """
    experiment = trainer.experiment
    statistics = check_tensors(received, down_specs(experiment, trainer.exchange, stage))
    labels, classes = np.asarray(data.train.labels), len(experiment.data.classes)
    if (private := experiment.privacy.statistics) and stage.name == "moments":
        projection = Projection.of(private, experiment.seed, trainer.exchange.features)
        draws = draws_for(
            experiment.privacy, experiment.seed, "statistics privacy", site, stage.round_number, secret=secret
        )
        features = trainer.features(model, data.train, "none")
        released = private_moments(features, labels, classes, projection, private.noise_multiplier, draws)
        return SiteAnswer(released.to_tensors(), {"num_samples": len(labels), "classes_left_out": 0})
    own = class_counts(labels, classes, least)
    weights = _weights(statistics, own)
    if stage.name == "choice":
        return _choice(trainer, stage, data, model, Moments.from_tensors(statistics), weights, own, least_evaluated)
    report: dict[str, JsonValue] = {
        "num_samples": int(own.sum()),
        "classes_left_out": int(np.count_nonzero(np.bincount(labels, minlength=classes) > own)),
    }
    if stage.name == "counts":
        return SiteAnswer({COUNTS: own}, report)
    features = trainer.features(model, data.train, "none")
    return SiteAnswer(moments(features, labels, classes, weights, least).to_tensors(), report)


def received_counts(experiment: Experiment, statistics: object) -> Float | None:
    """The federation's counts that have come with the payload of a round; None where the loss needs none.

    Raises:
        TensorError: if `statistics` are anything else.
    """
    needed = experiment.training.imbalance == "federation_weights"
    spec = TensorSpec((len(experiment.data.classes),), "float64")
    counts = check_tensors(statistics, {FEDERATION_COUNTS: spec} if needed else {}).get(FEDERATION_COUNTS)
    if counts is not None:
        check_counts(FEDERATION_COUNTS, counts)
    return counts


def _choice(
    trainer: LocalTrainer,
    stage: Stage,
    data: SiteData,
    model: Tensors,
    summed: Moments,
    weights: Float | None,
    own: Float,
    least_evaluated: int,
) -> SiteAnswer:
    """Evaluates each candidate on the images to choose by."""
    experiment, kind = trainer.experiment, solved(trainer.experiment, stage.when)
    if kind is None:
        raise ValueError(f"the head is not solved at the {stage.when}")
    by_validation = experiment.head.choose_by == "validation"
    if not by_validation:
        _check_at_least(COUNTS, summed.counts, own)
    # Of training images those that are in the sums: counts by class of the others must not leave.
    split = data.val if by_validation else _taken(data.train, own > 0)
    losses = {key: np.zeros(spec.shape) for key, spec in up_specs(experiment, trainer.exchange, stage).items()}
    if len(split) < max(1, least_evaluated):
        return SiteAnswer(losses, {"candidates": None})
    labels = np.asarray(split.labels)
    features = trainer.features(model, split, experiment.data.test_time_flips if by_validation else "none")
    if by_validation:
        heads = solutions(experiment, trainer.exchange, kind, summed, weights, experiment.head.penalties)
        logits = [head.logits(features) for head in heads]
    else:
        logits = [*leave_one_out(kind, summed, weights, experiment.head.penalties, features, labels)]
    for rows in losses.values():
        # Bounded, as a tiny penalty may make logits of any size: a poor candidate must not cost the site the stage.
        rows[:] = [np.minimum(log_losses(one, labels), LARGEST * len(labels)) for one in logits]
    metrics = [
        evaluate_predictions(torch.as_tensor(one), torch.as_tensor(labels), experiment.data.task) for one in logits
    ]
    for one in metrics:
        one["loss"] = min(one["loss"], LARGEST)
    return SiteAnswer(losses, {"candidates": cast(JsonValue, metrics)})


def _taken(split: ImageSplit, counted: npt.NDArray[np.bool_]) -> ImageSplit:
    """The images of the classes that are `counted`, bool (K,)."""
    places = np.flatnonzero(counted[split.labels])
    whole = len(places) == len(split)  # whose features may be cached
    return split if whole else ImageSplit(split.images[places], split.labels[places])


def _weights(statistics: Tensors, own: Float) -> Float | None:
    """The weights of the classes by the federation's counts; None where none have come, and all weigh 1.

    Raises:
        TensorError: if the counts cannot be those of a federation that this site is part of. Otherwise a lead could let
            a class weigh as if it had a single image, and read that image's features in the sums.
    """
    if (counts := statistics.get(FEDERATION_COUNTS)) is None:
        return None
    check_counts(FEDERATION_COUNTS, counts)
    _check_at_least(FEDERATION_COUNTS, counts, own)
    return class_weights(counts)


def _check_at_least(key: str, counts: Float, own: Float) -> None:
    if (counts < own).any():
        raise TensorError(
            f"tensor '{key}' says that all sites together have fewer images of a class than this site alone", key
        )
