"""A job's process ends with the process that started it, no matter how that one ends.

    python -m pt_peft_flare.parent.job_process PID COMMAND …

becomes COMMAND, which the kernel kills when process PID ends. FLARE's own job process asks once a second whether its
parent is there. If the parent has gone before the first look, it watches another one, and would go on for ever, under
the name of a site that was started again. Only Linux can do this; elsewhere FLARE's watch is all there is.
"""

import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_PR_SET_PDEATHSIG = 1
"""Of ``linux/prctl.h``."""
_LASTING = ThreadPoolExecutor(1, thread_name_prefix="job-starter")

P = ParamSpec("P")
T = TypeVar("T")


def ending_with_us(command: str) -> str:
    """Makes of `command`, a shell's words, one whose process ends with this one."""
    return f"{shlex.quote(sys.executable)} -m {__name__} {os.getpid()} {command}"


def in_lasting_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `function` in a thread that lasts as long as this process.

    To the kernel a process's parent is the thread that started it: with that thread the process would end.
    """
    return _LASTING.submit(function, *args, **kwargs).result()


def end_with(parent: int) -> None:
    """Lets this process, and what it becomes by an exec, end with process `parent`; at once if that one has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # before the call, perhaps
        sys.exit(f"the process {parent} that started this one has ended")


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
