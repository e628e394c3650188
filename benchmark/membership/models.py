"""Trains one of an audit's models, and queries it with every image."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from benchmark.membership.members import members
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.seeds import derive_seed
from pt_peft.training.trainer import LocalTrainer

FLIPS = ((), (3,), (2,), (2, 3))
"""Axes of images (N,3,S,S) that each query reverses."""


@dataclass(frozen=True)
class Subject:
    """An experiment to audit."""

    label: str
    """Its name in the tables."""
    experiment: Experiment
    site: Site
    names: tuple[str, ...]
    """Names of the sites, sorted."""


@dataclass(frozen=True)
class Design:
    """How all subjects are audited."""

    seed: int
    """Seed of the draw of members."""
    shadows: int
    """Shadows of each target: an even number, 4 or more."""
    flips: bool = False
    """Whether models are queried with the four flips of an image instead of the image alone."""
    known_seed: bool = False
    """Whether all models have the experiment's own seed, as an attacker who has the experiment can arrange.

    They then share their start and the order of images. Otherwise each model has its own seed, as in the paper.
    """

    @property
    def models(self) -> int:
        """Models of each subject: neither the target nor its complement is a shadow."""
        return self.shadows + 2

    @property
    def queries(self) -> int:
        """Queries of each image."""
        return len(FLIPS) if self.flips else 1


@dataclass(frozen=True)
class Observed:
    """A model's answers on the training images of all sites, site by site in the order of their names."""

    members: np.ndarray
    """bool (N,), whether it was trained on the image."""
    confidences: np.ndarray
    """float64 (N,Q), see `benchmark.membership.attacks`."""
    right: np.ndarray
    """bool (N,), whether the image is classified correctly."""
    seconds: float
    """Wall time of training and queries."""


def open_sites(subject: Subject) -> dict[str, SiteData]:
    """Loads the images of every site. Raises UserError if they cannot be read or halved."""
    sites = load_sites(subject.experiment, subject.site, list(subject.names))
    for name, data in sites.items():
        if len(data.train) < 2:
            raise UserError(
                f"site '{name}' has {len(data.train)} training image(s); at least 2 would be right, so that a model "
                "can be trained on one half of them."
            )
    return sites


def observe(subject: Subject, design: Design, model: int) -> Observed:
    """Trains the model of that index, and queries it. Raises UserError."""
    started = time.monotonic()
    sites = open_sites(subject)
    trainer = make_trainer(_of_model(subject.experiment, design, model), subject.site)
    if trainer.model.personal:
        raise UserError(
            f"experiment '{subject.label}': '{min(trainer.model.personal)}' stays at its site, so the federation's "
            "aggregate is no whole model to query; a method whose tensors are all exchanged or frozen would be right."
        )
    chosen = members(design.seed, {name: len(data.train) for name, data in sites.items()}, model)
    tensors = federate(trainer, {name: _only(data, chosen[name]) for name, data in sites.items()}).tensors
    logits, labels = _ask(trainer, tensors, sites, design)
    confidences = confidence(logits, labels)
    if not confidences.isfinite().all():
        rate = subject.experiment.training.learning_rate
        raise UserError(
            f"experiment '{subject.label}': model {model} gives logits that are not finite; a training.learning_rate "
            f"below {rate} may be right."
        )
    right = logits[0].argmax(dim=-1) == labels
    is_member = np.concatenate([chosen[name] for name in sorted(sites)])
    return Observed(is_member, confidences.T.numpy(), right.numpy(), time.monotonic() - started)


def confidence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log(p_y / (1 - p_y)) of the softmax, float64 (Q,N), exact also where p rounds to 1.

    It is the logit of the class less the log-sum-exp of the others.

    Args:
        logits: floating point (Q,N,K).
        labels: int64 (N,).
    """
    logits = logits.double()
    index = labels.expand(logits.shape[:-1])[..., None]
    others = logits.scatter(-1, index, -torch.inf).logsumexp(dim=-1)
    return logits.gather(-1, index)[..., 0] - others


def _of_model(experiment: Experiment, design: Design, model: int) -> Experiment:
    """The experiment of one model, without flips at test time: an attacker who has the model need not use them."""
    data = experiment.data.model_copy(update={"test_time_flips": "none"})
    # Differential privacy needs it too: noise drawn from one seed would be the same in all models, and cancel out.
    seed = (
        experiment.seed if design.known_seed else derive_seed(experiment.seed, "audited model", design.seed, model) >> 1
    )
    return experiment.model_copy(update={"data": data, "seed": seed})


def _only(data: SiteData, chosen: np.ndarray) -> SiteData:
    return SiteData(ImageSplit(data.train.images[chosen], data.train.labels[chosen]), data.val, data.test)


def _ask(
    trainer: LocalTrainer, tensors: Tensors, sites: Mapping[str, SiteData], design: Design
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (Q,N,K) and labels int64 (N,)."""
    splits = [sites[name].train for name in sorted(sites)]
    logits = []
    for axes in FLIPS[: design.queries]:
        flipped = [ImageSplit(np.flip(split.images, axes), split.labels) for split in splits]
        logits.append(torch.cat([trainer.predict(tensors, split)[0] for split in flipped]))
    return torch.stack(logits), torch.cat([torch.from_numpy(split.labels) for split in splits])
