"""Leaves out waits and work of FLARE that our jobs have no need of."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer

from pt_peft_flare.cores import leave_cores_to_host
from pt_peft_flare.flare_internals import (
    END_WITHOUT_TORCH,
    GOODBYES,
    JOB_END_LOOKS,
    SHUTDOWN_GRACE,
    SITE_END_QUIET,
    SITE_START_FORK,
    SITE_START_SLEEPS,
    SITE_SYNC_SLEEP,
)
from pt_peft_flare.site_fork import PROGRAM
from pt_peft_flare.site_processes import SiteFork, SiteProcess

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine

_LOOK_S = 0.1
_SLEEP_S = 0.02
"""The longest sleep of the simulator's between two looks, of which a task with a process of its own has three."""
_GRACE_S = 0.1


def end_without_torch(communicator: WFCommServer) -> None:
    """Keeps `communicator` from importing torch, seconds and hundreds of megabytes, to end downloads of torch tensors.

    There are none, as our tensors travel as arrays.
    """
    if END_WITHOUT_TORCH.usable():
        communicator._cleanup_inflight_tensor_downloads = _nothing  # pyright: ignore[reportPrivateUsage]  # flare_internals


def hasten_simulation(fl_ctx: FLContext) -> None:
    """Shortens the simulator's waits and lets it start sites by `SiteFork`; `flare_internals` lists each change."""
    if JOB_END_LOOKS.usable():
        # In the simulator the server's job and its engine share a process.
        cast("ServerEngine", fl_ctx.get_engine()).server.check_engine_frequency = _LOOK_S
    if SHUTDOWN_GRACE.usable():
        _shorten_grace()
    if SITE_START_SLEEPS.usable():
        from nvflare.private.fed.app.simulator import simulator_runner

        simulator_runner.time = _ShortSleeps()
    leave_cores_to_host()
    if SITE_START_FORK.usable():
        from nvflare.private.fed.app.simulator import simulator_runner

        simulator_runner.subprocess = SiteStarter(_fork())


def _fork() -> SiteFork | None:
    try:
        return SiteFork()
    except OSError:  # no such sockets on this system, or no process more
        return None


def hasten_site() -> None:
    """Shortens the waits of a simulated site, in whose process nothing has begun."""
    if SITE_SYNC_SLEEP.usable():
        from nvflare.private.fed.client import client_runner

        client_runner.time = _ShortSleeps()
    if SITE_END_QUIET.usable():
        from nvflare.widgets.fed_event import ClientFedEventRunner

        made = ClientFedEventRunner.__init__

        def make(self: Any, *args: Any, **options: Any) -> None:
            made(self, *args, **options)
            self.queue_empty_period = 0.0

        ClientFedEventRunner.__init__ = make


def _shorten_grace() -> None:
    from nvflare.fuel.f3.mpm import MainProcessMonitor

    shut_down: Callable[[float, float], None] = MainProcessMonitor._start_shutdown  # pyright: ignore[reportPrivateUsage]  # flare_internals

    def soon(shutdown_grace_time: float, cleanup_grace_time: float) -> None:
        if GOODBYES.usable():
            _forget_peers()
        shut_down(_GRACE_S, cleanup_grace_time)

    MainProcessMonitor._start_shutdown = soon  # pyright: ignore[reportPrivateUsage]  # flare_internals


def _forget_peers() -> None:
    """Leaves this process's cells nobody to part from: the sites' processes have ended, and would be waited for."""
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell

    for cell in list(CoreCell.ALL_CELLS.values()):
        with cell.agent_lock:
            cell.agents.clear()


def _nothing(fl_ctx: FLContext) -> None:
    pass


class _ShortSleeps:
    """The module `time`, but a sleep takes at most `_SLEEP_S`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, _SLEEP_S))


class SiteStarter:
    """The module `subprocess`, but a process that begins a session is not forked from this one.

    The simulator gives each site's process a function to run before its program, for which Python has to fork; and
    OpenBLAS, by which numpy multiplies, can lock up in a fork while another thread multiplies, as the server's does
    in an aggregation.
    """

    def __init__(self, fork: SiteFork | None = None):
        """Prepares to start processes.

        Args:
            fork: starts the sites' processes; None lets each start anew, with its own imports.
        """
        self._fork = fork
        self._started: dict[str, SiteProcess] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(
        self, command: list[str], *, preexec_fn: object = None, env: dict[str, str] | None = None, **options: Any
    ) -> "subprocess.Popen[Any] | SiteProcess":
        """Starts a process, a site's by the fork if it can."""
        if preexec_fn is not os.setsid:
            return subprocess.Popen(command, preexec_fn=cast(Any, preexec_fn), env=env, **options)
        if self._fork and command[:3] == [sys.executable, "-m", PROGRAM]:
            process = self._fork.start(command, dict(os.environ) if env is None else env)
            if process:
                self._started[command[command.index("--port") + 1]] = process
                return process
        return subprocess.Popen(command, start_new_session=True, env=env, **options)

    def is_running(self, port: int) -> bool | None:
        """Whether the site's process that listens at `port`, or soon will, is there; None if it is not from `fork`."""
        process = self._started.get(str(port))
        return None if process is None else process.poll() is None
