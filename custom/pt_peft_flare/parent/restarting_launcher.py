"""A site's job process that is killed is started again, instead of ending the job for all sites."""

import logging
import threading
from collections.abc import Callable

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle

log = logging.getLogger(__name__)


class RestartingJobLauncher(ClientProcessJobLauncher):
    """As FLARE's launcher, but a process that died by a signal (``kill -9``, the kernel's out-of-memory killer) is started
    again and asks the server for the task that it owes. After too many deaths the site alone is out: FLARE's own launcher
    reports any death as a failure of the job, at which the server ends it for everybody.
    """

    def __init__(self, max_restarts: int = 5) -> None:
        """Args:
        max_restarts: how often the process of one job is started again.
        """
        super().__init__()
        self._max_restarts = max_restarts

    def launch_job(self, job_meta: dict, fl_ctx: FLContext) -> JobHandleSpec:
        # FLARE says in the context how the process is started, and goes on using that context.
        own_ctx = FLContext()
        own_ctx.props.update(fl_ctx.props)
        launch = super().launch_job
        return RestartingHandle(lambda: launch(job_meta, own_ctx), self._max_restarts)


class RestartingHandle(JobHandleSpec):
    """The process of one job, whichever it is at the time."""

    def __init__(self, launch: Callable[[], ProcessHandle], max_restarts: int):
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
        """FLARE's code of how the process ended; unknown, at which the server goes on without this site, if it was killed."""
        return JobReturnCode.UNKNOWN if self._was_killed() else self._handle.poll()

    def wait(self) -> None:
        """Until the process has ended and is not started again."""
        while True:
            self._handle.wait()
            with self._lock:
                if self._ended or not self._was_killed():
                    return
                if not self._restarts_left:
                    log.error("the job's process was killed again; it is not started any more")
                    return
                self._restarts_left -= 1
                log.warning(
                    "the job's process was killed by signal %d; it is started again", -self._handle.adapter.poll()
                )
                self._handle = self._launch()

    def _was_killed(self) -> bool:
        code = self._handle.adapter.poll()
        return not self._ended and code is not None and code < 0
