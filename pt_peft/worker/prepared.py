"""The trainer that a host builds once, before it forks, for all its workers."""

import functools
import logging
import os
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.model.backbone import pinned_weights
from pt_peft.schema import parse
from pt_peft.training.footprint import check_model
from pt_peft.training.trainer import LocalTrainer, site_device
from pt_peft.worker.place import Place
from pt_peft.worker.requests import Work

_prepared: tuple[Experiment, Site, LocalTrainer] | None = None
_trainers: WeakValueDictionary[tuple[str, torch.device, bool], LocalTrainer] = WeakValueDictionary()
"""The trainers that workers in this process use."""


def prepare(work: Work, *, forks: bool = True) -> None:
    """Builds the trainer for `work`, if the site's limits allow it.

    On a machine with a GPU, used or not, nothing is built where this process forks: neither the GPU nor the threads
    that autograd starts for it survive that, and a GPU that this process does not see its forks may. Errors in `work`
    are left for a worker to report.
    """
    global _prepared
    try:
        experiment = parse(Experiment, work["experiment"], "experiment.json")
        site = parse(Site, work["site"], "site.json")
        if not (_prepared or (forks and _finds_gpu(Place()))):
            device = site_device(site)
            weights = pinned_weights(experiment.backbone, site)
            check_model(experiment, site.limits, lambda: weights, trains=True)
            _prepared = (
                experiment,
                _without_limits(site),
                LocalTrainer(experiment, weights, device, compiled=site.compile),
            )
    except Exception:
        logging.getLogger(__name__).info("nothing could be prepared", exc_info=True)


def prepared_trainer(experiment: Experiment, site: Site) -> LocalTrainer | None:
    """Returns the prepared trainer if it is for exactly this experiment and site, whatever the site's limits are."""
    return _prepared[2] if _prepared and _prepared[:2] == (experiment, _without_limits(site)) else None


def trainer_for(experiment: Experiment, weights: Path, device: torch.device, *, compiled: bool) -> LocalTrainer:
    """A trainer as `LocalTrainer` makes it: the same one for all workers of this process that ask for the same."""
    key = experiment.to_json(), device, compiled
    if (trainer := _trainers.get(key)) is None:
        trainer = _trainers[key] = LocalTrainer(experiment, weights, device, compiled=compiled)
    return trainer


def computes_on_gpu(place: Place) -> bool:
    """Whether a worker computes on a GPU there: it is to, and its user sees one."""
    return place.gpu is not None and _finds_gpu(Place()) and _finds_gpu(place._replace(gpu=None))


def _without_limits(site: Site) -> Site:
    """In a simulation the server prepares for the sites, whose limits are their own."""
    return site.model_copy(update={"limits": Limits.open()})


@functools.cache
def _finds_gpu(place: Place) -> bool:
    """Whether torch finds a GPU at `place`, asked in a fork: a process that has asked cannot use GPUs in its forks."""
    answer, answers = os.pipe()
    if not (asking := os.fork()):
        try:
            place.show()
            if not torch.cuda.is_available():
                os.write(answers, b"none")
        finally:  # else the fork would go on as a second host
            os._exit(0)
    os.close(answers)
    with open(answer, "rb") as said:
        none = said.read()
    with suppress(ChildProcessError):  # a host takes no notice of the ends of its forks
        os.waitpid(asking, 0)
    return not none
