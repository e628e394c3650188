"""Workers for FLARE components, and the host that forks them."""

import os
import threading
import time
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import write_atomically
from pt_peft.worker.client import HOST_VARIABLE, HostGone, Patience, Worker, WorkerHost
from pt_peft.worker.turns import usable_cores
from pt_peft_flare.run_context import (
    cloned_from,
    is_simulated_site,
    is_simulation,
    read_experiment,
    read_site,
    run_dir,
    simulated_server_dir,
    site_names,
)

SHARED_HOST = "worker_host"
"""File in the simulated server's folder with the socket of its host. (Not a variable of the environment: the simulator may start
sites before the server has a host.)"""

_REPLACED_S = 5
"""Within which the server has started another host if its own has died."""
_REPLACEMENTS = 10
"""More hosts than that are not started: something else is wrong."""

_started: WorkerHost | None = None
"""The host that this process started, if it did."""
_starting = threading.RLock()


def start_host(fl_ctx: FLContext) -> None:
    """Starts the host of this process before it is needed, so that it makes ready while FLARE starts up. In a simulation the
    server's is that of all sites.
    """
    if is_simulated_site(fl_ctx):
        return
    try:
        work = _work(read_experiment(fl_ctx), read_site(fl_ctx))
    except UserError:  # which is said when they are needed
        work = None
    folder = run_dir(fl_ctx)
    try:
        socket = _own_host(folder, work)
    except UserError:  # likewise
        return
    if is_simulation(fl_ctx):
        write_atomically(folder / SHARED_HOST, socket.encode())
        threading.Thread(target=_replace_dead, args=(folder, work), daemon=True).start()


def _own_host(folder: Path, work: dict | None, gone: str | None = None) -> str:
    """Socket of the host that this process has started, or was given by whoever started it, or else starts now.

    Args:
        work: as in `WorkerHost`.
        gone: the socket of one that is of no use any more.

    Raises:
        UserError: as `WorkerHost` does.
    """
    global _started
    with _starting:
        if _started is not None and _started.socket == gone:
            close_host()
        if os.environ.get(HOST_VARIABLE) == gone:
            os.environ.pop(HOST_VARIABLE, None)
        if _started is None:
            if HOST_VARIABLE in os.environ:
                return os.environ[HOST_VARIABLE]
            _started = WorkerHost(folder / "worker_host.log", work)
        return _started.socket


def _replace_dead(folder: Path, work: dict | None) -> None:
    """Starts another host when the one of a simulation dies, and lets the sites know."""
    for _ in range(_REPLACEMENTS):
        with _starting:
            host = _started
        if host is None:
            return
        host.wait()
        with _starting:
            if _started is None:  # closed
                return
            try:
                socket = _own_host(folder, work, gone=host.socket)
            except UserError:  # which whoever needs a worker is told
                return
        write_atomically(folder / SHARED_HOST, socket.encode())


def close_host() -> None:
    """Ends the host, with its workers, if this process started it."""
    global _started
    with _starting:
        if _started is not None:
            _started.close()
            _started = None


def _work(experiment: Experiment, site: Site) -> dict:
    return {"experiment": experiment.model_dump(mode="json"), "site": site.model_dump(mode="json")}


class RespawningWorker:
    """A worker that is opened on first use, and again after one that failed, was killed or died."""

    def __init__(self, experiment: Experiment, site: Site, folder: Path, fl_ctx: FLContext):
        """Args:
        folder: where the worker keeps its log and what must outlive it.
        """
        self._folder = folder
        self._shared = simulated_server_dir(fl_ctx) / SHARED_HOST if is_simulated_site(fl_ctx) else None
        self._work = _work(experiment, site)
        earlier = cloned_from(fl_ctx)
        self._opening = {
            **self._work,
            "name": fl_ctx.get_identity_name(),
            "names": site_names(fl_ctx, experiment),
            "run_dir": str(folder),
            "continues": str(folder.with_name(earlier)) if earlier else None,
            # One thread in a simulation: results then do not depend on how many sites run at once.
            "threads": site.threads or (1 if is_simulation(fl_ctx) else usable_cores()),
        }
        self._worker: Worker | None = None

    def call(
        self,
        request: str,
        message: dict | None = None,
        tensors: Tensors | None = None,
        patience: Patience | None = None,
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
        host = self._host()
        try:
            return Worker(host, self._opening, patience)
        except HostGone:  # killed, perhaps for its memory, or it hangs
            return Worker(self._replacement(host), self._opening, patience)

    def _replacement(self, gone: str) -> str:
        """What the simulated server has started in place of the host `gone`, or else a host of this process's own."""
        until = time.monotonic() + _REPLACED_S
        while self._shared and self._shared.exists() and time.monotonic() < until:
            if (another := self._shared.read_text()) != gone:
                return another
            time.sleep(0.1)
        return _own_host(self._folder, self._work, gone)

    def _host(self) -> str:
        if _started is None and HOST_VARIABLE not in os.environ and self._shared and self._shared.exists():
            return self._shared.read_text()
        return _own_host(self._folder, self._work)
