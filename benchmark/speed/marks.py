"""Marks: the moments of a run, written by the processes that train. Imports nothing that takes time."""

import json
import os
import time

VARIABLE = "PT_PEFT_SPEED_MARKS"
"""The environment variable that names the file of marks. `mark` does nothing without it."""


def mark(what: str, site: str = "") -> None:
    """Writes that something happens now.

    Args:
        what: ``imported``, or ``begins`` or ``ends`` for a site's training in a round.
        site: whose training; empty for ``imported``.
    """
    if path := os.environ.get(VARIABLE):
        line = json.dumps({"what": what, "site": site, "at": time.monotonic()}) + "\n"
        with open(path, "a", encoding="ascii") as file:  # one short write to a file opened for appending is not torn
            file.write(line)
