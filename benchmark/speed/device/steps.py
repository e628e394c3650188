"""Carries out steps one after the other, within the time, whatever becomes of each."""

import gc
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.speed.device.budget import Budget
from benchmark.speed.device.results import Results


class Skipped(Exception):
    """A step does not run; the message says why."""


class NoTime(Skipped):
    """A step does not run because too little time is left."""

    def __init__(self, needed: float, left: float):
        """Both in seconds."""
        super().__init__(f"takes about {needed:.0f} s or more; {max(left, 0):.0f} s were left")


@dataclass(frozen=True)
class Step:
    """One measurement."""

    section: str
    name: str
    run: Callable[[float], Mapping[str, Any]]
    """Takes the seconds that are left to it and returns what it found. Raises `Skipped`."""
    least: Callable[[], float] = lambda: 0.0
    """Estimates the seconds that it takes at least, when its turn comes."""


class Runner:
    """Runs steps and records each.

    Attributes:
        now: the step that runs.
    """

    def __init__(self, budget: Budget, results: Results, steps: Iterable[Step]):
        """See `run` and `watch`."""
        self._budget, self._results = budget, results
        self._since = 0.0
        self._to_come = deque(steps)
        self.now: Step | None = None

    def run(self) -> None:
        """Runs the steps; those for which a section had no time get a second chance when all others have ended."""
        late: list[Step] = []
        while self._to_come:
            self.now = step = self._to_come.popleft()
            if not self._one(step, self._budget.left(step.section)):
                late.append(step)
        while late:
            late.remove(step := min(late, key=self._telling))
            if self._budget.left() > 1.2 * step.least():
                self._one(step, self._budget.left())
        self._results.summarise()

    def _telling(self, step: Step) -> tuple[bool, bool]:
        """The most telling first: of sections that have found nothing yet, then speed."""
        found = {one["section"] for one in self._results.records if one["status"] == "done"}
        return step.section in found, step.section != "speed"

    def _one(self, step: Step, left: float) -> bool:
        """Runs one step. Returns false if `left` seconds are too few for it."""
        self.now, self._since = step, time.monotonic()
        least = step.least()
        try:
            if least > left:
                raise NoTime(least, left)
            values = step.run(left)
        except Skipped as reason:
            self._add(step, "skipped", {"why": str(reason)})
            return not isinstance(reason, NoTime)
        except Exception as error:  # one step must not end the others
            where = "".join(traceback.format_exception(error)).splitlines()[-12:]
            self._add(step, "failed", {"why": f"{type(error).__name__}: {error}"[:2000], "traceback": where})
        else:
            self._add(step, "done", values)
        finally:
            self.now = None
        free_memory()
        return True

    def _add(self, step: Step, status: Any, values: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._since
        self._results.add(step.section, step.name, status, seconds, values)
        why = f": {values['why']}" if "why" in values else ""
        print(f"{self._budget.passed():6.1f} s  {step.section}, {step.name}: {status}{why}", flush=True)

    def watch(self, end: Callable[[int], None] = os._exit) -> threading.Timer:
        """Ends the process when its time is over, even in the middle of a step, which is then recorded as failed.

        Steps whose turn had not come are recorded as skipped.
        """

        def stop() -> None:
            if step := self.now:
                self._add(step, "failed", {"why": "the time was over before it ended"})
            self._since = time.monotonic()
            for step in tuple(self._to_come):
                self._add(step, "skipped", {"why": "the time was over before its turn"})
            self._results.summarise()
            end(0)

        timer = threading.Timer(max(0.0, self._budget.left() + 3), stop)
        timer.daemon = True
        timer.start()
        return timer


def free_memory() -> None:
    """Gives memory that nothing holds any more back to the GPU."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
