"""Peak memory of a process and its descendants."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL_S = (0.5, 2.0)
"""Seconds between samples: shortest and longest. Sampling a dozen processes takes long enough to slow them."""


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes: memory that processes share is divided among them.

    Returns:
        0 for a process that has ended.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class PeakMemory:
    """Samples the sum of `pss` over a process and its descendants up to twice a second while the context is open.

    Attributes:
        bytes: the greatest sum so far.
        by_process: the greatest `pss` of each process so far, by its id.
    """

    def __init__(self, process: psutil.Process | None = None):
        """`process` is watched; None stands for this one."""
        self.bytes = 0
        self.by_process: dict[int, int] = {}
        self._process = process or psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        shortest, longest = INTERVAL_S
        while True:
            started = time.monotonic()
            with suppress(psutil.NoSuchProcess):  # the process may end at any time
                pids = [self._process.pid, *(child.pid for child in self._process.children(recursive=True))]
                now = {pid: pss(pid) for pid in pids}
                self.bytes = max(self.bytes, sum(now.values()))
                self.by_process |= {pid: max(size, self.by_process.get(pid, 0)) for pid, size in now.items()}
            if self._stop.wait(min(longest, max(shortest, 100 * (time.monotonic() - started)))):
                return
