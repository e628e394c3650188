"""Closes jobs that a server's death broke off when the server starts again."""

from pathlib import Path
from typing import cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import RunStatus
from nvflare.apis.job_def_manager_spec import JobDefManagerSpec

from pt_peft_flare.flare_internals import INTERRUPTED_JOBS


class InterruptedJobs(FLComponent):
    """Runs in the server's parent process.

    FLARE does not go on with such jobs, yet lists them as running for ever. Here they become ``FINISHED:ABNORMAL``,
    with what they have left in the workspace for download; a clone of one continues from its last finished round
    (`checkpoint`).
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Closes the jobs when the server starts."""
        if event_type != EventType.SYSTEM_START or not INTERRUPTED_JOBS.usable():
            return
        engine = fl_ctx.get_engine()
        manager = cast(JobDefManagerSpec, engine.get_component(SystemComponents.JOB_MANAGER))
        workspace = engine.get_workspace()
        for job in manager.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx):
            folder = Path(workspace.get_run_dir(job.job_id))
            if folder.is_dir():
                manager.save_workspace(job.job_id, [str(folder)], fl_ctx)
            manager.set_status(job.job_id, RunStatus.FINISHED_ABNORMAL, fl_ctx)
            self.log_warning(
                fl_ctx,
                f"job {job.job_id} was broken off by the end of this server; clone it to continue it",
                fire_event=False,
            )
