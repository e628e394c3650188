"""Measures one run of one contender: its time and phases, its memory, and its bytes on the wire."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import psutil

from benchmark.measurements.peak_memory import PeakMemory
from benchmark.speed.marks import VARIABLE
from pt_peft.errors import UserError

ROOT = Path(__file__).parents[2]
LIMIT_S = 3600
"""Seconds after which a run is stopped and has failed."""
# Gives the command a loopback of its own, so that nothing else is counted. `private_loopback` tries it.
ON_LOOPBACK = [
    "unshare",
    "--map-root-user",
    "--net",
    "sh",
    "-c",
    'ip link set lo up && "$@"; code=$?; cat /proc/net/dev >"$0"; exit $code',
]


class Mark(TypedDict):
    """One line of the file of marks, see `benchmark.speed.marks`."""

    what: str
    site: str
    at: float
    """Seconds of the monotonic clock."""
    pid: int
    """The process that writes it."""
    cpu_s: float
    """Processor seconds that the process has used."""
    pss: int
    """Its memory in bytes; 0 where the writer does not know it."""


class Phases(TypedDict):
    """The fields of `Measured` that follow from the marks."""

    imports_s: float
    startup_s: float
    training_s: float
    gap_per_round_s: float
    tail_s: float
    training_cpu_s: float


@dataclass(frozen=True)
class Server:
    """The process of a federation's server, with our job."""

    cpu_s: float
    """Processor seconds from its first round until all is done."""
    start_pss_gb: float
    """Memory when its first round begins, 10^9 bytes."""
    end_pss_gb: float
    """Memory when all is done and FLARE goes on to end the run."""
    pss_gb: float
    """Peak memory, 10^9 bytes, sampled like that of all processes."""


@dataclass(frozen=True)
class Measured:
    """One run. Start-up, the rounds and the tail follow one another; the gaps lie between the rounds."""

    wall_s: float
    """Seconds from the start of the first process to the end of the last."""
    imports_s: float
    """Seconds until the first process that trains has imported what it needs."""
    startup_s: float
    """Seconds until the first site trains."""
    training_s: float
    """Seconds in which at least one site trains."""
    gap_per_round_s: float
    """Seconds from the last site's end of a round to the first one's beginning of the next, mean over rounds."""
    tail_s: float
    """Seconds after the last training."""
    peak_pss_gb: float
    """Peak memory of all processes, 10^9 bytes, sampled up to twice a second."""
    wire_bytes: int | None
    """Bytes over the loopback, protocol included; None where no loopback can be had for the run alone."""
    training_cpu_s: float
    """Processor seconds in which sites train."""
    server: Server | None
    """None without a federation of ours."""


def private_loopback() -> bool:
    """Tells whether this machine lets a process have a loopback of its own."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    tried = subprocess.run([*ON_LOOPBACK, "/dev/null", "true"], capture_output=True)
    return tried.returncode == 0


def measure(
    command: Sequence[str],
    folder: Path,
    rounds: int,
    environment: Mapping[str, str],
    watching: Callable[[int], AbstractContextManager[object]] = lambda pid: nullcontext(),
) -> Measured:
    """Runs a contender and measures it.

    Args:
        command: of the contender.
        folder: working directory of the run; takes its log and its marks.
        rounds: how often every site trains.
        environment: variables beside those of this process.
        watching: makes a context that is open while the run lasts, from the number of its first process.

    Raises:
        UserError: if the command fails, or if a site did not train in every round.
    """
    marks, counter, log = folder / "marks.jsonl", folder / "loopback.txt", folder / "log.txt"
    marks.unlink(missing_ok=True)
    counts = private_loopback()
    whole = [*ON_LOOPBACK, str(counter), *command] if counts else list(command)
    started = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            whole, cwd=folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env={**os.environ, VARIABLE: str(marks), **environment},
        )  # fmt: skip
        with PeakMemory(psutil.Process(process.pid)) as memory, watching(process.pid):
            try:
                code: int | str = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                code = f"none within {LIMIT_S} s"
            finally:  # an interrupt too leaves no process behind
                if process.poll() is None:
                    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                        with suppress(psutil.NoSuchProcess):
                            one.kill()
                    process.wait()
    ended = time.monotonic()
    if code:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise UserError(f"{' '.join(command[:4])} …: exit code {code}; {log} ends with: {' / '.join(said)}")
    found: list[Mark] = [json.loads(line) for line in marks.read_text().splitlines()] if marks.exists() else []
    return Measured(
        wall_s=ended - started,
        peak_pss_gb=memory.bytes / 1e9,
        wire_bytes=sent(counter.read_text()) if counts else None,
        server=_server(found, memory.by_process),
        **phases(found, started, ended, rounds),
    )


def phases(marks: Sequence[Mark], started: float, ended: float, rounds: int) -> Phases:
    """Computes the phases of a run.

    Args:
        marks: in any order.
        started: when the run did, seconds of the clock of the marks.
        ended: when the run did.
        rounds: how often every site should have trained.

    Raises:
        UserError: if a site did not train in every round.
    """
    spans: dict[str, list[list[float]]] = defaultdict(list)
    for mark in sorted(marks, key=lambda mark: mark["at"]):
        if mark["what"] == "begins":
            spans[mark["site"]].append([mark["at"]])
        elif mark["what"] == "ends":
            spans[mark["site"]][-1].append(mark["at"])
    if not spans or any(len(own) != rounds or any(len(span) != 2 for span in own) for own in spans.values()):
        found = {site: len(own) for site, own in spans.items()}
        raise UserError(f"benchmark.speed: sites have trained in {found} rounds; {rounds} each would be right.")
    sign = {"begins": -1, "ends": 1}
    begins = [min(own[number][0] for own in spans.values()) for number in range(rounds)]
    ends = [max(own[number][1] for own in spans.values()) for number in range(rounds)]
    gaps = [max(0.0, begin - end) for begin, end in zip(begins[1:], ends, strict=False)]
    imported = [mark["at"] for mark in marks if mark["what"] == "imported"]
    return {
        "imports_s": min(imported, default=begins[0]) - started,
        "startup_s": begins[0] - started,
        "training_s": _covered((begin, end) for own in spans.values() for begin, end in own),
        "gap_per_round_s": sum(gaps) / len(gaps) if gaps else 0.0,
        "tail_s": ended - ends[-1],
        "training_cpu_s": sum(sign[mark["what"]] * mark["cpu_s"] for mark in marks if mark["what"] in sign),
    }


def python_path(*folders: Path) -> dict[str, str]:
    """Returns the environment variable by which Python finds `folders` and, after them, the packages of this clone."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT, ROOT / "custom")))}


def executable(name: str) -> str:
    """Returns the path of a program that is installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of `spans`."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _server(marks: Sequence[Mark], memory: Mapping[int, int]) -> Server | None:
    """What the server has used, from the marks and the peak memory of each process."""
    found = {mark["what"]: mark for mark in marks if mark["what"] in ("serves", "served")}
    if len(found) < 2:
        return None
    begun, ended = found["serves"], found["served"]
    return Server(
        cpu_s=ended["cpu_s"] - begun["cpu_s"],
        start_pss_gb=begun["pss"] / 1e9,
        end_pss_gb=ended["pss"] / 1e9,
        pss_gb=memory[ended["pid"]] / 1e9,
    )


def sent(devices: str) -> int:
    """Returns the bytes that ``lo`` has sent, from the content of ``/proc/net/dev``."""
    (line,) = [line for line in devices.splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])
