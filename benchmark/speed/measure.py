"""One run of one contender: how long it takes, where the time goes, its memory and its bytes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmark.measurements.peak_memory import PeakMemory
from benchmark.speed.marks import VARIABLE
from pt_peft.errors import UserError

ROOT = Path(__file__).parents[2]
LIMIT_S = 3600
# A loopback of its own, so that nothing else is counted. Tried by `private_loopback`.
ON_LOOPBACK = [
    "unshare",
    "--map-root-user",
    "--net",
    "sh",
    "-c",
    'ip link set lo up && "$@"; code=$?; cat /proc/net/dev >"$0"; exit $code',
]


@dataclass(frozen=True)
class Measured:
    """One run. The phases follow one another; gaps are inside of what lies between the first and the last training."""

    wall_s: float
    """From the start of the first process to the end of the last."""
    imports_s: float
    """Until the first process that trains has imported what it needs."""
    startup_s: float
    """Until the first site trains."""
    training_s: float
    """In which at least one site trains."""
    gap_per_round_s: float
    """From the last site's end of a round to the first one's beginning of the next, mean over rounds."""
    tail_s: float
    """From the end of the last training on."""
    peak_pss_gb: float
    """Of all processes, 10^9 bytes, looked at up to twice a second."""
    wire_bytes: int | None
    """Over the loopback, protocol included; None where it could not be had alone."""

    def to_json(self) -> dict:
        return asdict(self)


def private_loopback() -> bool:
    """Whether this machine lets a process have a loopback of its own."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    tried = subprocess.run([*ON_LOOPBACK, "/dev/null", "true"], capture_output=True)
    return tried.returncode == 0


def measure(command: Sequence[str], folder: Path, rounds: int, environment: Mapping[str, str]) -> Measured:
    """Runs `command` in `folder`, which takes what it writes.

    Args:
        rounds: how often every site trains.

    Raises:
        UserError: if it fails, or notes other moments than it should.
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
        with PeakMemory(psutil.Process(process.pid)) as memory:
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                code = f"none within {LIMIT_S} s"
            finally:  # also if this process is interrupted
                if process.poll() is None:
                    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                        with suppress(psutil.NoSuchProcess):
                            one.kill()
                    process.wait()
    ended = time.monotonic()
    if code:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise UserError(f"{' '.join(command[:4])} …: exit code {code}; {log} ends with: {' / '.join(said)}")
    noted = [json.loads(line) for line in marks.read_text().splitlines()] if marks.exists() else []
    return Measured(
        wall_s=ended - started,
        peak_pss_gb=memory.bytes / 1e9,
        wire_bytes=_sent(counter.read_text()) if counts else None,
        **phases(noted, started, ended, rounds),
    )


def phases(noted: Sequence[Mapping], started: float, ended: float, rounds: int) -> dict[str, float]:
    """The parts of `Measured` that follow from what was noted. Raises UserError if some site did not train in every round."""
    spans: dict[str, list[list[float]]] = defaultdict(list)
    for one in sorted(noted, key=lambda one: one["at"]):
        if one["what"] == "begins":
            spans[one["site"]].append([one["at"]])
        elif one["what"] == "ends":
            spans[one["site"]][-1].append(one["at"])
    if not spans or any(
        len(of_site) != rounds or any(len(span) != 2 for span in of_site) for of_site in spans.values()
    ):
        found = {site: len(of_site) for site, of_site in spans.items()}
        raise UserError(f"benchmark.speed: sites have trained in {found} rounds; {rounds} each would be right.")
    begins = [min(of_site[number][0] for of_site in spans.values()) for number in range(rounds)]
    ends = [max(of_site[number][1] for of_site in spans.values()) for number in range(rounds)]
    gaps = [max(0.0, begin - end) for begin, end in zip(begins[1:], ends, strict=False)]
    imported = [one["at"] for one in noted if one["what"] == "imported"]
    return {
        "imports_s": min(imported, default=begins[0]) - started,
        "startup_s": begins[0] - started,
        "training_s": _covered([span for of_site in spans.values() for span in of_site]),
        "gap_per_round_s": sum(gaps) / len(gaps) if gaps else 0.0,
        "tail_s": ended - ends[-1],
    }


def python_path(*folders: Path) -> dict[str, str]:
    """The environment in which this repository's packages are found, and `folders` before them."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT, ROOT / "custom")))}


def executable(name: str) -> str:
    """Of a program that lies beside this Python."""
    return str(Path(sys.executable).parent / name)


def _covered(spans: Sequence[Sequence[float]]) -> float:
    """The length of the union of `spans`."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _sent(devices: str) -> int:
    """Bytes that /proc/net/dev says ``lo`` has sent."""
    (line,) = [line for line in devices.splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])
