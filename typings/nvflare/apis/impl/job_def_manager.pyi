from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job
from nvflare.apis.job_def_manager_spec import JobDefManagerSpec

class SimpleJobDefManager(JobDefManagerSpec):
    def __init__(self, uri_root: str = "jobs", job_store_id: str = "job_store") -> None: ...
    def update_meta(self, jid: str, meta: dict[str, Any], fl_ctx: FLContext) -> None: ...
    def get_app(self, job: Job, app_name: str, fl_ctx: FLContext) -> bytes: ...
