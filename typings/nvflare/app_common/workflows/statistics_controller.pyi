from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.signal import Signal

class StatisticsController(FLComponent):
    task_name: str
    precision: int
    statistic_configs: dict[str, dict[str, Any]]
    client_statistics: dict[str, dict[str, Any]]
    global_statistics: dict[str, Any]
    def __init__(
        self,
        statistic_configs: dict[str, dict[str, Any]],
        writer_id: str,
        wait_time_after_min_received: int = 1,
        result_wait_timeout: int = 10,
        precision: int = 4,
        min_clients: int | None = None,
        enable_pre_run_task: bool = True,
    ) -> None: ...
    def set_communicator(self, communicator: WFCommServer) -> None: ...
    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None: ...
    def statistics_task_flow(self, abort_signal: Signal, fl_ctx: FLContext, statistic_task: str) -> None: ...
    def broadcast(
        self,
        task: Task,
        fl_ctx: FLContext,
        targets: list[Client] | list[str] | None = None,
        min_responses: int = 1,
    ) -> None: ...
    def cancel_task(self, task: Task, *, fl_ctx: FLContext) -> None: ...
    def broadcast_and_wait(
        self,
        task: Task,
        fl_ctx: FLContext,
        targets: list[Client] | list[str] | None = None,
        min_responses: int = 1,
        wait_time_after_min_received: int = 0,
        abort_signal: Signal | None = None,
    ) -> None: ...
    def results_cb(self, client_task: ClientTask, fl_ctx: FLContext) -> None: ...
    def post_fn(self, task_name: str, fl_ctx: FLContext) -> None: ...
    def system_panic(self, reason: str, fl_ctx: FLContext) -> None: ...
