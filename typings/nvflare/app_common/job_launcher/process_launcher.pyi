import subprocess
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobLauncherSpec
from nvflare.utils.process_utils import ProcessAdapter

class ProcessHandle(JobHandleSpec):
    adapter: ProcessAdapter
    def __init__(self, process: subprocess.Popen[Any] | None = None) -> None: ...

class ProcessJobLauncher(JobLauncherSpec):
    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str: ...
    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec: ...
