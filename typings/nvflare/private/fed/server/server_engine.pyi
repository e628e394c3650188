from threading import Lock
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.private.admin_defs import Message
from nvflare.private.fed.server.fed_server import FederatedServer
from nvflare.private.fed.server.job_runner import JobRunner

class ClientReply:
    reply: Message | None

class ServerEngine(ServerEngineSpec):
    server: FederatedServer
    job_runner: JobRunner
    run_processes: dict[str, dict[str, Any]]
    exception_run_processes: dict[str, dict[str, Any]]
    lock: Lock
    def send_app_command(self, job_id: str, topic: str, cmd_data: object, timeout: float) -> object: ...
    def check_client_resources(
        self, job: Job, resource_reqs: dict[str, dict[str, Any]], fl_ctx: FLContext
    ) -> dict[str, tuple[bool, str]]: ...
    def start_client_job(
        self, job: Job, client_sites: dict[str, DispatchInfo], fl_ctx: FLContext
    ) -> list[ClientReply]: ...
    def cancel_client_resources(
        self,
        resource_check_results: dict[str, tuple[bool, str]],
        resource_reqs: dict[str, dict[str, Any]],
        fl_ctx: FLContext,
    ) -> None: ...
    def get_clients(self) -> list[Client]: ...
