"""Which cores the processes of a simulation use while they start.

The worker host and the sites' processes start at the same time, and each would have an equal share. But all will wait for the host.
"""

import json
import os

_VARIABLE = "PT_PEFT_CORES"
"""All that a simulation may use, as JSON."""


def leave_cores_to_host() -> None:
    """Lets what the main thread of this process starts from now on, the sites' processes, use half of the cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.environ[_VARIABLE] = json.dumps(cores)
        os.sched_setaffinity(os.getpid(), cores[len(cores) // 2 :])


def take_all_cores() -> None:
    """Ends that for a site's process that has started, and for what it will start."""
    if cores := os.environ.get(_VARIABLE):
        os.sched_setaffinity(0, json.loads(cores))
