"""What a host makes once, before it forks, for all its workers."""

import logging
import os

import torch

from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.model.backbone import pinned_weights
from pt_peft.schema import parse
from pt_peft.training.trainer import LocalTrainer, pick_device

_prepared: tuple[Experiment, Site, LocalTrainer] | None = None


def prepare(work: dict) -> None:
    """Builds the trainer of ``work["experiment"]`` with the backbone of ``work["site"]`` (their JSON), on the CPU. Where there is
    a GPU, whatever is used, there is none: neither it nor the threads that autograd starts for it outlive a fork. What is wrong
    with either is left for a worker to say.
    """
    global _prepared
    try:
        experiment, site = (
            parse(Experiment, work["experiment"], "experiment.json"),
            parse(Site, work["site"], "site.json"),
        )
        if not _finds_gpu():
            device = pick_device(site.device)
            weights = pinned_weights(experiment.backbone, site)
            _prepared = experiment, site, LocalTrainer(experiment, weights, device)
    except Exception:
        logging.getLogger(__name__).info("nothing could be prepared", exc_info=True)


def prepared_trainer(experiment: Experiment, site: Site) -> LocalTrainer | None:
    """The trainer of just these, if it was prepared."""
    return _prepared[2] if _prepared and _prepared[:2] == (experiment, site) else None


def _finds_gpu() -> bool:
    """Asked in a process of its own: a process that has asked cannot use the GPU in its forks."""
    asking = os.fork()
    if not asking:
        found = True
        try:
            found = torch.cuda.is_available()
        finally:  # or else there would be two hosts
            os._exit(found)
    return bool(os.waitpid(asking, 0)[1])
