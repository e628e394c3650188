from threading import Lock

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job
from nvflare.private.admin_defs import Message

class JobRunner:
    running_jobs: dict[str, Job]
    lock: Lock
    _pending_client_outcomes: dict[str, set[str]]
    def resolve_client_outcome(self, job_id: str, client_name: str) -> None: ...
    @staticmethod
    def _make_deploy_message(job: Job, app_data: bytes, app_name: str, fl_ctx: FLContext) -> Message: ...
