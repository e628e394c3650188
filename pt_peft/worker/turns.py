"""Workers of one host take turns at computing: as many compute at a time as keep the cores busy.

More workers would each hold the memory of a training, and all would end no sooner.
"""

import ctypes
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pt_peft.environment import usable_cores

PER_CORE = 2
"""Turns for each core. With fewer, cores would idle while the last of a few sites train."""
_LOOK_S = 0.05


class Turns:
    """Gives a worker turns. A worker that is killed gives its turn back."""

    def __init__(self, folder: Path):
        """Names the places.

        Args:
            folder: the host's, the same for all its workers.
        """
        self._places = [FileLock(folder / f"turn-{place}") for place in range(PER_CORE * usable_cores())]

    @contextmanager
    def turn(self) -> Generator[None]:
        """Waits for a turn. Afterwards freed memory goes back to the system if other workers may be waiting for it."""
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
        """Takes a free place; None if all are taken."""
        for place in self._places:
            if not place.is_locked:
                try:
                    place.acquire(timeout=0)
                except Timeout:
                    continue
                return place
        return None


def _give_memory_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it, and only glibc needs it
    if trim:
        trim(0)
