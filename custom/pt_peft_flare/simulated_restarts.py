"""Starts a simulated site's process again when it was killed, as `restarting_launcher` does in a real federation."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from pt_peft_flare.console import console
from pt_peft_flare.flare_internals import SITE_RESTARTS
from pt_peft_flare.short_waits import SiteStarter

if TYPE_CHECKING:
    from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

_LOOK_S = 0.5
"""Between looks whether a site that starts is still there."""
MAX_RESTARTS = 5
"""Of each site in one simulation."""


def restart_killed_sites(give_up: Callable[[str], None], is_over: Callable[[], bool]) -> None:
    """Lets FLARE's simulator start killed sites again from now on; it takes a killed site for one that has finished.

    A site that is started again is sent the task that it owes.

    Args:
        give_up: told the name of a site that was killed too often.
        is_over: whether the job has ended, after which no site is started again.
    """
    if not SITE_RESTARTS.usable():
        return
    from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

    run_once, connect_once = SimulatorClientRunner.do_one_task, SimulatorClientRunner._create_connection  # pyright: ignore[reportPrivateUsage]  # flare_internals
    deaths: Counter[str] = Counter()

    def run(
        runner: "SimulatorClientRunner", client: Any, num_of_threads: int, *args: Any, **options: Any
    ) -> tuple[bool, object, str | None]:
        site: str = client.client_name
        while deaths[site] <= MAX_RESTARTS:
            killed = (True, None, site)
            try:
                outcome = run_once(runner, client, num_of_threads, *args, **options)
            except (OSError, EOFError, RuntimeError):  # before it was connected
                outcome = killed
            if outcome != killed or is_over():
                return outcome
            deaths[site] += 1
            if deaths[site] > MAX_RESTARTS:
                give_up(site)
            else:
                console.warning("%s: its process has died; it is started again", site)
        # The thread goes on with another site, unless each site has a thread of its own.
        return is_over() or num_of_threads == len(runner.federated_clients), None, None

    def connect(runner: "SimulatorClientRunner", open_port: int, timeout: float = 60.0) -> object:
        until = time.monotonic() + timeout
        while True:
            try:
                return connect_once(runner, open_port, timeout=_LOOK_S)
            except RuntimeError:
                if time.monotonic() > until or not _is_listening(open_port):
                    raise

    SimulatorClientRunner.do_one_task = run
    SimulatorClientRunner._create_connection = connect  # pyright: ignore[reportPrivateUsage]  # flare_internals


def _is_listening(port: int) -> bool:
    """Whether the process of a site that listens at `port`, or soon will, is there."""
    from nvflare.private.fed.app.simulator import simulator_runner

    starter = simulator_runner.subprocess
    if isinstance(starter, SiteStarter) and (running := starter.is_running(port)) is not None:
        return running
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if str(port) in process.cmdline():
                return True
    return False
