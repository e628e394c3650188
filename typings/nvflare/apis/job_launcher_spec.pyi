from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

class JobProcessArgs:
    EXE_MODULE: str
    WORKSPACE: str
    STARTUP_DIR: str
    APP_ROOT: str
    OPTIONS: str

class JobReturnCode:
    SUCCESS: int
    EXECUTION_ERROR: int
    ABORTED: int
    UNKNOWN: int

class JobHandleSpec:
    def __init__(self) -> None: ...
    def terminate(self) -> None: ...
    def poll(self) -> int: ...
    def wait(self) -> None: ...

class JobLauncherSpec(FLComponent):
    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec: ...
