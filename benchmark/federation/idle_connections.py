"""Measures what connections that show no key do to a provisioned server and the job that it runs.

    python -m benchmark.federation.idle_connections [--connections 20000] [--out benchmark/results/connections.json]

A job of short rounds runs in a federation of two sites on this machine. After a minute so many TCP connections to the
server's port are opened and held open, without a word, for another minute; then they are closed. This is done with
FLARE's own settings of connections, and with those of our kits.
"""

import argparse
import json
import multiprocessing
import resource
import selectors
import socket
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypedDict

import psutil

from benchmark.federation.provisioned import Federation
from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, to_json
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.files import check_place
from pt_peft.presets import demo
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.round_file import read_rounds
from pt_peft_flare.run_record import ROUNDS

OUT = Path("benchmark/results/connections.json")
SITES = ("hospital-1", "hospital-2")
PHASE_S = 60.0
PER_PROCESS = 4000
"""Connections that one process opens: it may have so many descriptors."""


class Phase(TypedDict):
    """A minute of the job."""

    rounds: int
    """Rounds that ended in it."""
    round_s: float | None
    """Median seconds of a round; None without a round."""
    left_out: int
    """Results that were left out of a round."""
    descriptors: int
    """Most open descriptors of the server's parent process."""
    connections: int
    """Most connections that were open at a time, as those who hold them see it."""
    login_s: float | None
    """Seconds in which a person could log in; None if not within 20 s."""


class Case(TypedDict):
    """One way to set up the server."""

    settings: str
    """``FLARE`` or ``kits``."""
    before: Phase
    during: Phase
    after: Phase
    running: bool
    """Whether the job still ran at the end."""


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    connections: int
    descriptors: int
    """Most descriptors that a process on this machine may have."""
    cases: list[Case]


def hold(source: str, port: int, count: int, ended: Event, opened: Any) -> None:
    """Opens `count` connections to `port`, opens those again that were closed, and holds them until `ended`.

    Args:
        source: address that they come from.
        port: on this machine.
        count: connections.
        ended: says when to stop.
        opened: a shared number, set to how many are open.
    """
    connections: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        while not ended.is_set():
            for _ in range(min(200, count - len(connections))):
                try:
                    one = socket.create_connection(("127.0.0.1", port), timeout=1, source_address=(source, 0))
                except OSError:
                    break
                one.setblocking(False)
                connections.add(one)
                selector.register(one, selectors.EVENT_READ)
            for key, _ in selector.select(0.05):
                closed = True
                with suppress(OSError):
                    closed = not key.fileobj.recv(4096)  # type: ignore[union-attr]
                if closed:
                    selector.unregister(key.fileobj)
                    connections.discard(key.fileobj)  # type: ignore[arg-type]
                    key.fileobj.close()  # type: ignore[union-attr]
            opened.value = len(connections)


def measure(connections: int, settings: str) -> Case:
    """Runs one case. Raises UserError if the federation does not come up."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        free.close()
        folder = Path(name)
        federation = Federation(folder, {site: Site(threads=1, limits=Limits.open()) for site in SITES}, port)
        if settings == "FLARE":
            path = federation.kit("server") / "local" / "comm_config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            del config["grpc"]
            path.write_text(json.dumps(config), encoding="utf-8")
        try:
            return _measure(federation, folder, connections, settings)
        finally:
            federation.close()


def _measure(federation: Federation, folder: Path, connections: int, settings: str) -> Case:
    federation.start()
    session = federation.session()
    federation.wait_for(session)
    experiment = demo("lora_vpt")[0]
    experiment = experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"images_per_site": {"train": 16, "val": 16, "test": 16}}),
            "federation": experiment.federation.model_copy(
                update={"rounds": 100_000, "round_timeout_s": 30, "site_timeout_s": 25, "min_sites": 1}
            ),
        }
    )
    write_job(experiment, folder / "job", installed=True)
    job = str(session.submit_job(str(folder / "job")))
    record = federation.kit("server") / job / ROUNDS
    deadline = time.monotonic() + 180
    while len(read_rounds(record)) < 2:
        if time.monotonic() > deadline:
            raise UserError(f"job {job} has finished no round in 180 s.")
        time.sleep(1)
    before = _phase(federation, record, [])
    ended = multiprocessing.Event()
    opened = [multiprocessing.Value("i", 0) for _ in range(-(-connections // PER_PROCESS))]
    holders = [
        multiprocessing.Process(
            target=hold,
            args=(
                f"127.0.1.{index + 1}",
                federation.port,
                min(PER_PROCESS, connections - PER_PROCESS * index),
                ended,
                one,
            ),
        )
        for index, one in enumerate(opened)
    ]
    for one in holders:
        one.start()
    try:
        during = _phase(federation, record, opened)
    finally:
        ended.set()
        for one in holders:
            one.join()
    after = _phase(federation, record, [])
    finished = len(read_rounds(record))
    time.sleep(15)
    running = len(read_rounds(record)) > finished
    return {"settings": settings, "before": before, "during": during, "after": after, "running": running}


def _phase(federation: Federation, record: Path, opened: list[Any]) -> Phase:
    """Watches the job for `PHASE_S`."""
    first = len(read_rounds(record))
    until = time.monotonic() + PHASE_S
    descriptors = most = 0
    login_s: float | None = None
    tried = False
    while time.monotonic() < until:
        descriptors = max(descriptors, max((_descriptors(one) for one in federation.processes("server")), default=0))
        most = max(most, sum(one.value for one in opened))
        if not tried and time.monotonic() > until - PHASE_S / 2:
            tried = True
            login_s = _login_s(federation)
        time.sleep(0.5)
    rounds = read_rounds(record)[first:]
    return {
        "rounds": len(rounds),
        "round_s": statistics.median(one["seconds"] for one in rounds) if rounds else None,
        "left_out": sum(len(one["left_out"]) for one in rounds),
        "descriptors": descriptors,
        "connections": most,
        "login_s": login_s,
    }


def _login_s(federation: Federation) -> float | None:
    started = time.monotonic()
    with suppress(UserError):
        federation.session(within_s=20).close()
        return time.monotonic() - started
    return None


def _descriptors(process: psutil.Process) -> int:
    try:
        return process.num_fds()
    except psutil.NoSuchProcess:
        return 0


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.federation.idle_connections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--connections", type=int, default=20_000, help="connections (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_positive(options, "connections")
    check_place(options.out)
    result: Result = {
        "provenance": provenance(),
        "connections": options.connections,
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "cases": [measure(options.connections, settings) for settings in ("FLARE", "kits")],
    }
    finish(options, result, to_json(result["cases"]))


if __name__ == "__main__":
    sys.exit(main())
