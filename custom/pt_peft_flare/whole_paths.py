"""Paths with blanks or quotes in commands that FLARE joins without quoting them, and then splits into words."""

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs

from pt_peft_flare.flare_internals import SITE_START_WORDS

_PATHS = (JobProcessArgs.WORKSPACE, JobProcessArgs.STARTUP_DIR, JobProcessArgs.APP_ROOT)


def quoted(command: str, paths: Iterable[str]) -> str:
    """`command` with each of `paths` in it quoted for a shell."""
    longest_first = sorted({*paths, sys.executable}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: shlex.quote(found[0]), command)


def quoted_job_command(command: str, fl_ctx: FLContext) -> str:
    """FLARE's `command` that starts the process of a job, its paths quoted."""
    given: dict[str, tuple[str, Any]] = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
    return quoted(command, (str(given[name][1]) for name in _PATHS if name in given))


def simulate_at_any_path(fl_ctx: FLContext) -> None:
    """Lets the simulator start sites in a workspace, and by a Python, at any path."""
    if SITE_START_WORDS.usable():
        from nvflare.private.fed.app.simulator import simulator_runner

        server = Path(fl_ctx.get_engine().get_workspace().get_root_dir())
        simulator_runner.shlex = _Words(str(server.parent))


class _Words:
    """The module `shlex`, but in the simulator's commands its workspace is one word."""

    def __init__(self, workspace: str):
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(shlex, name)

    def split(self, command: str, comments: bool = False) -> list[str]:
        return shlex.split(quoted(command, [self._workspace]), comments)
