"""How much memory a process and all that it started take."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL_S = (0.5, 2.0)
"""Between looks: shortest and longest. A look at a dozen processes takes long enough to slow them."""


def pss(pid: int) -> int:
    """Bytes of the process's proportional set size: memory that processes share is divided among them. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class PeakMemory:
    """The greatest sum of `pss` over a process and its descendants while the context was open, looked at up to twice a second."""

    def __init__(self, process: psutil.Process | None = None):
        """Args:
        process: None for this one.
        """
        self.bytes = 0
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
            with suppress(psutil.NoSuchProcess):  # it may end at any time
                pids = [self._process.pid, *(child.pid for child in self._process.children(recursive=True))]
                self.bytes = max(self.bytes, sum(map(pss, pids)))
            if self._stop.wait(min(longest, max(shortest, 100 * (time.monotonic() - started)))):
                return
