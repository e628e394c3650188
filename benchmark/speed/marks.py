"""Moments of a run, noted by whichever process trains. Imports nothing that takes time."""

import json
import os
import time

VARIABLE = "PT_PEFT_SPEED_MARKS"
"""Names the file; without it nothing is noted."""


def mark(what: str, site: str = "") -> None:
    """Notes that `what` happens now: ``imported``, or ``begins`` or ``ends`` for a site's training in a round."""
    if path := os.environ.get(VARIABLE):
        line = json.dumps({"what": what, "site": site, "at": time.monotonic()}) + "\n"
        with open(path, "a", encoding="ascii") as file:  # one short write to a file opened for appending is not torn
            file.write(line)
