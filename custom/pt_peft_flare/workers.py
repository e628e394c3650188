"""Workers for FLARE components: who starts their host, and where it is found."""

import os
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.experiment import Experiment
from pt_peft.site import Site
from pt_peft.tensors import Tensors
from pt_peft.worker.client import HOST_VARIABLE, Worker, WorkerHost
from pt_peft_flare.run_context import is_simulation, site_names


def share_host(folder: Path) -> WorkerHost | None:
    """Starts a host for this process and all that it starts: in a simulation, for every site's client process.

    Returns:
        The host, for the caller to close; None if whoever started this process shares one already.
    """
    if inherited_host():
        return None
    host = WorkerHost(folder / "worker_host.log")
    os.environ[HOST_VARIABLE] = host.socket
    return host


def inherited_host() -> str | None:
    """Socket of the host that this process was given to use, if there is one."""
    path = os.environ.get(HOST_VARIABLE)
    return path if path and os.path.exists(path) else None


class RespawningWorker:
    """A worker that is opened on first use, and again after one that failed, was killed or died."""

    def __init__(self, experiment: Experiment, site: Site, folder: Path, fl_ctx: FLContext):
        """Args:
        folder: where the worker keeps its log and what must outlive it.
        """
        self._folder = folder
        self._opening = {
            "experiment": experiment.model_dump(mode="json"),
            "site": site.model_dump(mode="json"),
            "name": fl_ctx.get_identity_name(),
            "names": site_names(fl_ctx, experiment),
            "run_dir": str(folder),
            # One thread in a simulation: results then do not depend on how many sites run at once.
            "threads": site.threads or (1 if is_simulation(fl_ctx) else len(os.sched_getaffinity(0))),
        }
        self._worker: Worker | None = None
        self._host: WorkerHost | None = None

    def call(self, request: str, *args, **kwargs) -> tuple[dict, Tensors]:
        """As `Worker.call`."""
        if self._worker is None:
            self._worker = Worker(self._host_socket(), self._opening)
        try:
            return self._worker.call(request, *args, **kwargs)
        except Exception:
            # The next call starts from a clean process: nothing that outlives a call is held in this one.
            self._kill()
            raise

    def close(self) -> None:
        """Ends the worker, and its host if that was started for it alone."""
        self._kill()
        if self._host is not None:
            self._host.close()
            self._host = None

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _host_socket(self) -> str:
        if inherited := inherited_host():
            return inherited
        if self._host is None or not self._host.alive():
            self._host = WorkerHost(self._folder / "worker_host.log")
        return self._host.socket
