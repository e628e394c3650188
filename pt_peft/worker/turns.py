"""Turns at computing: so many workers of one host at a time as keep its cores busy.

More of them would each hold the memory of a training, and all would end no sooner.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PER_CORE = 2
"""With less, cores would idle while the last of a few sites train."""
_LOOK_S = 0.05


def usable_cores() -> int:
    """How many this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )  # macOS lacks the former


class Turns:
    """A worker's view of them. One that is killed gives its turn back."""

    def __init__(self, folder: Path):
        """Args:
        folder: the same for all workers of a host.
        """
        self._places = [FileLock(folder / f"turn-{place}") for place in range(PER_CORE * usable_cores())]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for one. Memory that the turn has freed goes back to the system if others may be waiting for it."""
        while (mine := self._free()) is None:
            time.sleep(_LOOK_S)
        try:
            yield
        finally:
            other = self._free()
            if other is None:
                _give_memory_back()
            else:
                other.release()
            mine.release()

    def _free(self) -> FileLock | None:
        """A place that was free and is this worker's now."""
        for place in self._places:
            if not place.is_locked:
                try:
                    place.acquire(timeout=0)
                except Timeout:
                    continue
                return place
        return None


def _give_memory_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it, and alone needs it
    if trim:
        trim(0)
