"""Finds what an experiment exchanges independently of the learner, and keeps it in the site's cache folder."""

import hashlib
import json
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.code_key import code_key
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import write_atomically
from pt_peft.worker.handle import Patience
from pt_peft_flare.run_context import run_dir
from pt_peft_flare.site_worker import RespawningWorker


def read_exchange(experiment: Experiment, site: Site, fl_ctx: FLContext) -> Exchange:
    """Which tensors travel in which round of `experiment`.

    A worker of its own computes it once; later calls read it from the cache, because in a simulation with fewer threads
    than sites every task runs in a new process.

    Raises:
        UserError: if the experiment's method or backbone is not known.
        WorkerError: if the worker fails.
    """
    if cached := cached_exchange(experiment, site):
        return cached
    worker = RespawningWorker(experiment, site, run_dir(fl_ctx) / "egress", fl_ctx)
    try:
        fields, _ = worker.call("exchange", patience=Patience(experiment.federation.site_timeout_s))
    finally:
        worker.close()
    path = _path(experiment, site)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(fields).encode())
    except OSError:
        pass  # only a cache
    return Exchange.from_json(fields)


def cached_exchange(experiment: Experiment, site: Site) -> Exchange | None:
    """The same from the cache alone; None if it is not there, or damaged."""
    try:
        cached = Exchange.from_json(json.loads(_path(experiment, site).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return cached if cached.specs else None


def _path(experiment: Experiment, site: Site) -> Path:
    return site.cache_folder() / "exchanged" / f"{cache_key(experiment)}.json"


def cache_key(experiment: Experiment) -> str:
    """SHA-256, in hex, over all that an exchange depends on: the experiment, the weights that it pins, the code."""
    code = code_key("pt_peft.model.planned_exchange", "pt_peft.methods")
    parts = (experiment.digest(), experiment.backbone.sha256, code)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
