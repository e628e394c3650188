"""Workers for FLARE components, and when the host that forks them starts and ends."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.environment import usable_cores
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.worker.frames import Frame
from pt_peft.worker.handle import HostGone, Patience, Worker
from pt_peft.worker.host_lookup import HOSTS
from pt_peft.worker.requests import Opening, Work
from pt_peft_flare.gpus import see_gpus_of_first_site
from pt_peft_flare.run_context import (
    continued_dir,
    is_simulated_site,
    is_simulation,
    read_experiment,
    read_site,
    run_dir,
    simulated_server_dir,
    site_names,
)

ANNOUNCEMENT = "worker_host"
"""File in the simulated server's folder in which the server announces its host."""


def start_host(fl_ctx: FLContext) -> None:
    """Starts the host of this process before it is needed, so that it gets ready while FLARE starts up.

    In a simulation the server starts the one host for all sites, and a site starts none. Errors are left for the first
    call of a worker to raise.
    """
    if is_simulated_site(fl_ctx):
        return
    if is_simulation(fl_ctx):
        see_gpus_of_first_site(fl_ctx)
    try:
        work = _work(read_experiment(fl_ctx), read_site(fl_ctx))
    except UserError:
        work = None
    folder = run_dir(fl_ctx)
    with contextlib.suppress(UserError):
        if is_simulation(fl_ctx):
            HOSTS.announce(folder, work, folder / ANNOUNCEMENT)
        else:
            HOSTS.find(folder, work)


def close_host() -> None:
    """Ends the host, with its workers, if this process started it."""
    HOSTS.close()


def _work(experiment: Experiment, site: Site) -> Work:
    return {"experiment": experiment.model_dump(mode="json"), "site": site.model_dump(mode="json")}


class RespawningWorker:
    """A worker that is opened on first use, and opened again after one that failed, was killed or died."""

    def __init__(self, experiment: Experiment, site: Site, folder: Path, fl_ctx: FLContext):
        """Prepares to open a worker.

        Args:
            experiment: the job's.
            site: the site's settings.
            folder: where the worker keeps its log and what must outlive it.
            fl_ctx: tells the site's name and whether this is a simulation.
        """
        self._folder = folder
        self._announcement = simulated_server_dir(fl_ctx) / ANNOUNCEMENT if is_simulated_site(fl_ctx) else None
        self._work = _work(experiment, site)
        earlier = continued_dir(fl_ctx)
        self._opening: Opening = {
            **self._work,
            "name": fl_ctx.get_identity_name(),
            "names": site_names(fl_ctx, experiment),
            "run_dir": str(folder),
            "continues": str(earlier) if earlier else None,
            # One thread in a simulation: results then do not depend on how many sites run at once.
            "threads": site.threads or (1 if is_simulation(fl_ctx) else usable_cores()),
        }
        self._worker: Worker | None = None

    def call(
        self,
        request: str,
        message: Mapping[str, object] | None = None,
        tensors: Tensors | None = None,
        patience: Patience | None = None,
    ) -> Frame:
        """Calls the worker as `Worker.call` does. `patience` covers the opening too."""
        if self._worker is None:
            self._worker = self._open(patience)
        try:
            return self._worker.call(request, message, tensors, patience)
        except Exception:
            # The next call starts from a clean process: nothing that outlives a call is held in this one.
            self.close()
            raise

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _open(self, patience: Patience | None) -> Worker:
        host = HOSTS.find(self._folder, self._work, self._announcement)
        try:
            return Worker(host, self._opening, patience)
        except HostGone:  # killed, perhaps for its memory, or it hangs
            another = HOSTS.replace(host, self._folder, self._work, self._announcement)
            return Worker(another, self._opening, patience)
