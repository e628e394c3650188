"""Marks: the moments of a run, written by the processes that train. Imports nothing that takes time."""

import json
import os
import time

VARIABLE = "PT_PEFT_SPEED_MARKS"
"""The environment variable that names the file of marks. `mark` does nothing without it."""


def mark(what: str, site: str = "", pss: int = 0) -> None:
    """Writes that something happens now, in this process, which has used so much of the processor.

    Args:
        what: ``imported``, ``begins`` or ``ends`` for a site's training in a round, or ``serves`` or ``served`` for all
            that a federation's server does between its start and its end.
        site: whose training; else empty.
        pss: memory of the process, bytes, where it is known.
    """
    if path := os.environ.get(VARIABLE):
        now = {"at": time.monotonic(), "pid": os.getpid(), "cpu_s": time.process_time(), "pss": pss}
        line = json.dumps({"what": what, "site": site, **now}) + "\n"
        with open(path, "a", encoding="ascii") as file:  # one short write to a file opened for appending is not torn
            file.write(line)
