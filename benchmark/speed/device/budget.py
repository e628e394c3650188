"""The time that the command may take, and what of it each section may."""

import time
from collections.abc import Callable

SHARES = {"machine": 0.02, "contract": 0.15, "speed": 0.43, "sites": 0.15, "levers": 0.05, "accuracy": 0.2}
"""The sections in their order, and each one's share of the time after the imports. A section may also take what those
before it have left."""


class Budget:
    """Seconds that are left, for each section and in all."""

    def __init__(self, minutes: float, started: float, clock: Callable[[], float] = time.monotonic):
        """Starts the count.

        Args:
            minutes: that the command may take.
            started: the clock's value when the command began.
            clock: seconds.
        """
        self._started, self._clock = started, clock
        total = 60 * minutes
        self._began = clock()
        # Measured work ends earlier: the interpreter, the GPU and the worker host take seconds to end.
        self._end = started + total - min(15.0, 0.1 * total)

    def left(self, section: str | None = None) -> float:
        """Seconds left to `section`, or to all."""
        share = 1.0
        if section is not None:
            names = list(SHARES)
            share = sum(SHARES[name] for name in names[: names.index(section) + 1])
        return self._began + share * (self._end - self._began) - self._clock()

    def passed(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._started
