"""Starts the simulator's site processes as forks of one process, which has imported what they all need.

    python -m pt_peft_flare.site_fork DESCRIPTOR

``DESCRIPTOR`` is that of a socket to the simulator, see `pt_peft_flare.site_processes`. A fork does what
``python -m nvflare.private.fed.app.simulator.simulator_worker`` does, but has its modules from the start and shares
their memory. This process ends with the simulator.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np

PROGRAM = "nvflare.private.fed.app.simulator.simulator_worker"
"""The module that FLARE runs as a site's process."""
COMPONENTS = (
    "pt_peft_flare.learner",
    "pt_peft_flare.filters",
    "nvflare.app_common.decomposers.numpy_decomposers",
    "nvflare.app_common.executors.client_api_executor",
    "nvflare.fuel.utils.fobs.decomposers.core_decomposers",
    "nvflare.fuel.f3.drivers.aio_grpc_driver",
    "nvflare.fuel.f3.drivers.aio_http_driver",
    "nvflare.fuel.f3.drivers.grpc_driver",
    "nvflare.fuel.f3.drivers.tcp_driver",
)
"""What such a process imports later, by the job's config and on its own. Time is all that a missing name costs."""
MESSAGE_BYTES = 1 << 20
"""Most bytes of a message, which has a whole environment."""


class Start(TypedDict):
    """What the simulator asks for, as JSON: to start a process."""

    command: list[str]
    """The Python, ``-m``, a module as `PROGRAM`, and its arguments."""
    environment: dict[str, str]
    folder: str
    """The working directory."""


def main() -> None:
    """Forks until the simulator ends. Returns in a fork, when its program has ended."""
    simulator = socket.socket(fileno=int(sys.argv[1]))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))  # see `cores`
    gc.disable()  # a collection looks through all modules
    importlib.import_module(PROGRAM)
    del sys.modules[PROGRAM]  # each fork runs it itself
    for name in COMPONENTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # all objects so far stay in the memory that the forks share
    gc.enable()
    start = _serve(simulator)
    simulator.close()
    _become(start)


def _serve(simulator: socket.socket) -> Start:
    """Answers the simulator, and tells it of each process that has ended. Returns in each fork, what it is to do."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakes.fileno())
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([simulator, woken], [], [])
        if woken in ready:
            woken.recv(MESSAGE_BYTES)
            for number, code in _ended(running):
                _tell(simulator, {"ended": number, "code": code})
        if simulator not in ready:
            continue
        message = simulator.recv(MESSAGE_BYTES)
        if not message:  # the simulator has ended
            os._exit(0)
        asked = json.loads(message)
        if "signal" in asked:
            if asked["process"] in running:
                os.kill(asked["process"], asked["signal"])
            continue
        number = os.fork()
        if not number:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            woken.close()
            wakes.close()
            return asked
        running.add(number)
        _tell(simulator, {"started": number})


def _ended(running: set[int]) -> list[tuple[int, int]]:
    """Takes processes that have ended out of `running`. Returns their numbers, and exit codes as `subprocess`'s."""
    found: list[tuple[int, int]] = []
    for number in list(running):
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            running.discard(number)
            found.append((number, os.waitstatus_to_exitcode(status)))
    return found


def _tell(simulator: socket.socket, what: dict[str, int]) -> None:
    try:
        simulator.send(json.dumps(what).encode())
    except OSError:  # it has ended
        os._exit(0)


def _become(start: Start) -> None:
    """Does in this fork what a new Python would do with the command."""
    os.setsid()
    os.chdir(start["folder"])
    command, environment = start["command"], start["environment"]
    given = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if brings_imported([path for path in given if path not in sys.path]):
        os.execve(command[0], command, environment)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = dict.fromkeys([start["folder"], *given, *sys.path[1:]])
    sys.argv = command[2:]
    np.random.seed()  # else all sites would draw the same numbers

    from pt_peft_flare.short_waits import hasten_site

    hasten_site()
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)


def brings_imported(folders: Iterable[str]) -> bool:
    """Whether one of `folders`, as a job's own code, has a module that this process has imported from elsewhere."""
    found = (path.name.partition(".")[0] for folder in folders for path in Path(folder).glob("*"))
    return any(name in sys.modules for name in found)


if __name__ == "__main__":
    main()
