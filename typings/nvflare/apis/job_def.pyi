from enum import StrEnum
from typing import Any

from nvflare.apis.fl_context import FLContext

ALL_SITES: str
SERVER_SITE_NAME: str

class RunStatus(StrEnum):
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    FINISHED_ABNORMAL = "FINISHED:ABNORMAL"

class JobMetaKey(StrEnum):
    JOB_ID = "job_id"
    STUDY = "study"
    JOB_CLIENTS = "job_clients"
    CLONED_FROM = "cloned_from"
    DEPLOY_MAP = "deploy_map"
    RESOURCE_SPEC = "resource_spec"
    JOB_DEPLOY_DETAIL = "job_deploy_detail"

class Job:
    job_id: str
    min_sites: int
    run_aborted: bool
    meta: dict[str, Any]
    def get_application(self, app_name: str, fl_ctx: FLContext) -> bytes: ...

def is_valid_job_id(jid: object) -> bool: ...
