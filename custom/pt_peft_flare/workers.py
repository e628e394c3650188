"""Workers for FLARE components, and the host that forks them."""

import os
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.site import Site
from pt_peft.tensors import Tensors
from pt_peft.worker.client import HOST_VARIABLE, HostGone, Patience, Worker, WorkerHost
from pt_peft_flare.run_context import cloned_from, is_simulation, read_experiment, read_site, run_dir, site_names

_started: WorkerHost | None = None
"""The host that this process started, if it did."""


def host_socket(folder: Path, work: dict | None) -> str:
    """Socket of the host that this process was given, or else of its own, which is started if need be.

    The processes that this one starts are given the same: in a simulation all sites share the server's host.

    Args:
        work: as in `WorkerHost`.
    """
    global _started
    if HOST_VARIABLE not in os.environ:
        _started = WorkerHost(folder / "worker_host.log", work)
        os.environ[HOST_VARIABLE] = _started.socket
    return os.environ[HOST_VARIABLE]


def start_host(fl_ctx: FLContext) -> None:
    """Starts the host of a job before it is needed, so that it makes ready while FLARE starts up."""
    try:
        work = _work(read_experiment(fl_ctx), read_site(fl_ctx))
    except UserError:  # which is said when they are needed
        work = None
    host_socket(run_dir(fl_ctx), work)


def close_host() -> None:
    """Ends the host, with its workers, if this process started it."""
    global _started
    if _started is not None:
        _started.close()
        _started = None
        os.environ.pop(HOST_VARIABLE, None)


def _work(experiment: Experiment, site: Site) -> dict:
    return {"experiment": experiment.model_dump(mode="json"), "site": site.model_dump(mode="json")}


class RespawningWorker:
    """A worker that is opened on first use, and again after one that failed, was killed or died."""

    def __init__(self, experiment: Experiment, site: Site, folder: Path, fl_ctx: FLContext):
        """Args:
        folder: where the worker keeps its log and what must outlive it.
        """
        self._folder = folder
        self._work = _work(experiment, site)
        earlier = cloned_from(fl_ctx)
        self._opening = {
            **self._work,
            "name": fl_ctx.get_identity_name(),
            "names": site_names(fl_ctx, experiment),
            "run_dir": str(folder),
            "continues": str(folder.with_name(earlier)) if earlier else None,
            # One thread in a simulation: results then do not depend on how many sites run at once.
            "threads": site.threads or (1 if is_simulation(fl_ctx) else len(os.sched_getaffinity(0))),
        }
        self._worker: Worker | None = None

    def call(
        self, request: str, message: dict | None = None, tensors: Tensors | None = None, patience: Patience | None = None
    ) -> tuple[dict, Tensors]:
        """As `Worker.call`; the patience is for the opening too."""
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
        try:
            return Worker(host_socket(self._folder, self._work), self._opening, patience)
        except HostGone:
            # Killed, perhaps for its memory, or it hangs. Whoever started it, this process goes on with one of its own.
            close_host()
            os.environ.pop(HOST_VARIABLE, None)
            return Worker(host_socket(self._folder, self._work), self._opening, patience)
