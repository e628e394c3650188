"""Starts a site's job process again when it was killed, instead of ending the job for all sites."""

import logging
import threading
from collections.abc import Callable
from typing import Any, cast

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle

from pt_peft.environment import VISIBLE
from pt_peft_flare.flare_internals import RESTARTS
from pt_peft_flare.parent.job_gpus import take_gpus
from pt_peft_flare.parent.job_process import ending_with_us, in_lasting_thread
from pt_peft_flare.whole_paths import quoted_job_command

log = logging.getLogger(__name__)

_GPUS = "pt_peft_gpus"
"""What FLARE's context has the GPUs of a job under."""


class RestartingJobLauncher(ClientProcessJobLauncher):
    """Starts a process again that died by a signal (``kill -9``, the kernel's out-of-memory killer).

    It then asks the server for the task that it owes. After too many deaths the site alone is out: FLARE's own launcher
    reports any death as a failure of the job, at which the server ends it for everybody. The process ends with the
    site's own (`job_process`).
    """

    def __init__(self, max_restarts: int = 5) -> None:
        """Starts the process of one job again at most `max_restarts` times."""
        super().__init__()
        self._max_restarts = max_restarts

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Starts the process of a job, which sees the GPUs that it was given, also when it is started again."""
        fl_ctx.set_prop(_GPUS, take_gpus(), private=True, sticky=False)
        if not RESTARTS.usable():
            return in_lasting_thread(super().launch_job, job_meta, fl_ctx)
        # FLARE says in the context how the process is started, and goes on using that context.
        own_ctx = FLContext()
        own_ctx.props.update(fl_ctx.props)
        launch = cast(Callable[..., ProcessHandle], super().launch_job)  # which is what it returns
        return RestartingHandle(lambda: in_lasting_thread(launch, job_meta, own_ctx), self._max_restarts)

    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str:
        """The words of the command that starts it."""
        command = ending_with_us(quoted_job_command(super().get_command(job_meta, fl_ctx), fl_ctx))
        gpus = fl_ctx.get_prop(_GPUS)
        return f"/usr/bin/env {VISIBLE}={gpus} {command}" if gpus else command


class RestartingHandle(JobHandleSpec):
    """The process of one job, and those that replace it."""

    def __init__(self, launch: Callable[[], ProcessHandle], max_restarts: int):
        """Starts the process by `launch`."""
        super().__init__()
        self._launch = launch
        self._restarts_left = max_restarts
        self._ended = False
        self._lock = threading.Lock()
        self._handle = launch()

    def terminate(self) -> None:
        """Ends it for good."""
        with self._lock:
            self._ended = True
            self._handle.terminate()

    def poll(self) -> int:
        """FLARE's code of how the process ended; ``UNKNOWN``, at which the job goes on without the site, if killed."""
        return self._handle.poll() if self._killed_by() is None else JobReturnCode.UNKNOWN

    def wait(self) -> None:
        """Waits until the process has ended and is not started again."""
        while True:
            self._handle.wait()
            with self._lock:
                signal = self._killed_by()
                if signal is None:
                    return
                if not self._restarts_left:
                    log.error("the job's process was killed again; it is not started any more")
                    return
                self._restarts_left -= 1
                log.warning("the job's process was killed by signal %d; it is started again", signal)
                self._handle = self._launch()

    def _killed_by(self) -> int | None:
        """The signal that has ended the process; None if there is none, or it was to end."""
        code = self._handle.adapter.poll()
        return -code if not self._ended and code is not None and code < 0 else None
