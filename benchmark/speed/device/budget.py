"""The time that the command may take, and what of it each section may."""

import time
from collections.abc import Callable

SHARES = {"machine": 0.05, "contract": 0.1, "speed": 0.45, "sites": 0.15, "levers": 0.05, "accuracy": 0.2}
"""The sections in their order. A section may also take what those before it have left."""


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
        # Measured work ends earlier: the interpreter, the GPU and the worker host take seconds to end.
        self._usable = total - min(15.0, 0.1 * total)

    def left(self, section: str | None = None) -> float:
        """Seconds left to `section`, or to all."""
        share = 1.0
        if section is not None:
            names = list(SHARES)
            share = sum(SHARES[name] for name in names[: names.index(section) + 1])
        return self._started + share * self._usable - self._clock()

    def passed(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._started
