"""Keeps every version of the file in which a run writes its aggregate, with the seconds and bytes until then."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmark.speed.measure import private_loopback, sent

INTERVAL_S = 0.05
"""Seconds between two looks."""


@dataclass(frozen=True)
class Snapshot:
    """One version of the file."""

    seconds: float
    """From the start of the run until it was written."""
    wire_bytes: int | None
    """Bytes over the run's loopback until it was seen; None where the run has no loopback of its own."""
    path: Path
    """A copy."""


class Snapshots:
    """Copies a file that is replaced, never written in place, each time that it is.

    Attributes:
        found: the versions so far.
    """

    def __init__(self, path: Path, folder: Path):
        """Names the file, which need not be there yet, and a folder for the copies."""
        self.found: list[Snapshot] = []
        self._path = path
        self._folder = folder
        self._last: tuple[int, int] | None = None
        self._counts = private_loopback()
        folder.mkdir(parents=True)

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Watches while the context is open, which is that of the run whose first process is `pid`."""
        counter = Path(f"/proc/{pid}/net/dev") if self._counts else None
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(time.time(), counter, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, began: float, counter: Path | None, ended: threading.Event) -> None:
        nbytes: int | None = None
        while True:
            last = ended.wait(INTERVAL_S)
            if counter:
                with suppress(OSError, ValueError):  # the process has ended, or is about to
                    nbytes = sent(counter.read_text())
            self._look(began, nbytes)
            if last:
                return

    def _look(self, began: float, nbytes: int | None) -> None:
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            state = os.fstat(file.fileno())
            version = (state.st_ino, state.st_mtime_ns)
            if version == self._last:
                return
            self._last = version
            copy = self._folder / f"{len(self.found)}{self._path.suffix}"
            with open(copy, "wb") as target:
                shutil.copyfileobj(file, target)
        self.found.append(Snapshot(state.st_mtime_ns / 1e9 - began, nbytes, copy))
