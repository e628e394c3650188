"""How much memory a process and all that it started take."""

import threading
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL_S = 0.5


def pss(pid: int) -> int:
    """Bytes of the process's proportional set size: memory that processes share is divided among them. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class PeakMemory:
    """The greatest sum of `pss` over a process and its descendants while the context was open, looked at twice a second."""

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
        while True:
            with suppress(psutil.NoSuchProcess):  # it may end at any time
                pids = [self._process.pid, *(child.pid for child in self._process.children(recursive=True))]
                self.bytes = max(self.bytes, sum(map(pss, pids)))
            if self._stop.wait(INTERVAL_S):
                return
