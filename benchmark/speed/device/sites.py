"""Several sites that train at the same time on one device, by the worker host that FLARE's clients use."""

import math
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from benchmark.measurements.peak_memory import pss
from benchmark.speed.device.cases import Case
from benchmark.speed.device.pace import Pace
from benchmark.speed.device.speed import Weights, of_case
from benchmark.speed.device.steps import NoTime, Step
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.schema import parse
from pt_peft.worker.handle import Patience, Worker
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.requests import Opening, Work

SECTION = "sites"
COUNTS = (1, 2, 4, 8)
ROUNDS = 3
"""Rounds of all sites that are measured, after one that is not."""
STEPS = {"cpu": 1, "cuda": 16}
"""Steps of a site's round."""
START_S = 30.0
"""Seconds until the host and its first worker train, at most as a rule."""


def site_steps(
    cases: tuple[Case, ...],
    folder: Path,
    weights: Weights,
    device: torch.device,
    pace: Pace,
    counts: tuple[int, ...] = COUNTS,
) -> Iterator[Step]:
    """A step for each of `cases`."""

    def step(case: Case) -> Step:
        def least() -> float:
            return START_S + (1 + ROUNDS) * STEPS[device.type] * pace.step(case) * (counts[0] + counts[1])

        return Step(SECTION, case.name, lambda left: measure(case, folder, weights, device, pace, counts, left), least)

    yield from map(step, cases)


def measure(
    case: Case, folder: Path, weights: Weights, device: torch.device, pace: Pace, counts: tuple[int, ...], left: float
) -> dict[str, Any]:
    """Measures each of `counts` as long as `left` seconds last.

    Returns:
        ``sites``: for each count the images a second of all sites and the peak memory; ``bytes_per_site``: what one
        more site takes; ``not_measured``: the counts for which there was no time. Memory is all that is used of a GPU,
        by contexts too; on a CPU it is the processes' (PSS).

    Raises:
        NoTime: if not even the first is measured.
    """
    started = time.monotonic()
    names = [f"site-{number}" for number in range(1, counts[-1] + 1)]
    images = STEPS[device.type] * case.batch_size
    path, _ = weights.of(case.architecture)
    experiment = case.experiment(sha256_of(path), images, tuple(names))
    cache = folder / "cache"
    own = {"backbone": str(path), "device": device.type, "cache": str(cache), "limits": None}
    site = parse(Site, own, "benchmark.speed.device")
    work: Work = {"experiment": experiment.model_dump(mode="json"), "site": site.model_dump(mode="json")}
    found: list[dict[str, Any]] = []
    per_round = STEPS[device.type] * pace.step(case)
    group = _Group(work, names, folder / case.name)
    try:
        for count in counts:
            seconds = left - (time.monotonic() - started)
            needed = (0 if found else START_S / 2) + (1 + ROUNDS) * count * per_round
            if seconds < needed:
                if not found:
                    raise NoTime(needed, seconds)
                break
            with PeakUse(device) as use:
                group.grow(count, seconds)
                walls = [group.round(seconds) for _ in range(1 + ROUNDS)]
            wall = statistics.median(walls[1:])
            found.append(
                {"sites": count, "images_per_s": count * images / wall, "round_s": walls, "memory_bytes": use.bytes}
            )
            per_round = wall / count
    finally:
        group.close()
    return {**of_case(case), "images_of_a_site": images, **_of_all(found, counts)}


class _Group:
    """Sites that train at the same time, each a worker of one host."""

    def __init__(self, work: Work, names: list[str], folder: Path):
        """Starts the host.

        Args:
            work: of all sites.
            names: of all sites that there may be.
            folder: takes what host and workers write.
        """
        self._work, self._names, self._folder = work, names, folder
        self._host = WorkerHost(folder / "host.log", work)
        self._pool = ThreadPoolExecutor(len(names))
        self._workers: list[Worker] = []
        self._rounds: list[int] = []
        self._payload: Tensors = {}

    def grow(self, count: int, seconds: float) -> None:
        """Opens workers until there are `count`; waits for each `seconds` at most."""
        for name in self._names[len(self._workers) : count]:
            opening: Opening = {
                **self._work, "name": name, "names": self._names, "run_dir": str(self._folder / name),
                "continues": None, "threads": 1,
            }  # fmt: skip
            self._workers.append(Worker(self._host.socket, opening, Patience(seconds)))
            self._rounds.append(0)
        if not self._payload:
            self._payload = self._workers[0].call("initial_state", {}, None, Patience(seconds))[1]

    def round(self, seconds: float) -> float:
        """Lets all train a round at the same time, each `seconds` at most. Returns the seconds that it took."""
        started = time.perf_counter()
        list(self._pool.map(lambda index: self._train(index, seconds), range(len(self._workers))))
        return time.perf_counter() - started

    def close(self) -> None:
        """Ends the workers and the host."""
        self._pool.shutdown()
        for worker in self._workers:
            worker.kill()
        self._host.close()

    def _train(self, index: int, seconds: float) -> None:
        message = {"round": self._rounds[index], "since": None}
        self._workers[index].call("train", message, self._payload, Patience(seconds))
        self._rounds[index] += 1


def _of_all(found: list[dict[str, Any]], counts: tuple[int, ...]) -> Mapping[str, Any]:
    first, last = found[0], found[-1]
    more = last["sites"] - first["sites"]
    return {
        "sites": found,
        "bytes_per_site": (last["memory_bytes"] - first["memory_bytes"]) / more if more else None,
        "not_measured": list(counts[len(found) :]),
    }


class PeakUse:
    """The most memory that is in use while the context is open: of a GPU by all processes, or of this one's children.

    Attributes:
        bytes: the most so far.
    """

    def __init__(self, device: torch.device):
        """`device` is watched."""
        self.bytes = 0
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        cuda = self._device.type == "cuda"
        while True:
            self.bytes = max(self.bytes, self._gpu() if cuda else _children())
            if self._stop.wait(0.01 if cuda else 0.3):
                return

    def _gpu(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


def _children() -> int:
    """Memory of all processes below this one, bytes (PSS)."""
    return math.ceil(sum(pss(one.pid) for one in psutil.Process().children(recursive=True)))
