"""Which cores the processes of a simulation use while they start.

The worker host and the sites' processes start at the same time and would share the cores equally. But all sites wait
for the host, which therefore gets half of the cores for itself.
"""

import json
import os

_VARIABLE = "PT_PEFT_CORES"
"""Environment variable with all cores that a simulation may use, as JSON."""


def leave_cores_to_host() -> None:
    """Lets the sites' processes, which the main thread of this process starts from now on, use half of the cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.environ[_VARIABLE] = json.dumps(cores)
        os.sched_setaffinity(os.getpid(), cores[len(cores) // 2 :])


def take_all_cores() -> None:
    """Lets a site's process that has started, and what it starts, use all cores again."""
    if cores := os.environ.get(_VARIABLE):
        os.sched_setaffinity(0, json.loads(cores))
