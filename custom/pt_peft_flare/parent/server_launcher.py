"""Starts the server's job processes so that they end with the server."""

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

from pt_peft_flare.parent.job_process import ending_with_us, in_lasting_thread
from pt_peft_flare.whole_paths import quoted_job_command


class ServerJobLauncher(ServerProcessJobLauncher):
    """FLARE's launcher of the server's job processes, which end with the process that started them."""

    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str:
        """The words of the command."""
        return ending_with_us(quoted_job_command(super().get_command(job_meta, fl_ctx), fl_ctx))

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Starts the process of a job."""
        return in_lasting_thread(super().launch_job, job_meta, fl_ctx)
