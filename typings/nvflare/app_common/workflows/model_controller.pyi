from collections.abc import Callable

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model_persistor import ModelPersistor

class ModelController(FLComponent):
    # Set before `run` is called.
    engine: ServerEngineSpec
    fl_ctx: FLContext
    abort_signal: Signal
    persistor: ModelPersistor
    communicator: WFCommServer
    def __init__(self, *, ignore_result_error: bool | None = None, task_check_period: float = 0.5) -> None: ...
    def set_communicator(self, communicator: WFCommServer) -> None: ...
    def run(self) -> None: ...
    def event(self, event_type: str) -> None: ...
    def fire_event_with_data(self, event_type: str, fl_ctx: FLContext, key: str, data: object) -> None: ...
    def panic(self, reason: str) -> None: ...
    def get_num_standing_tasks(self) -> int: ...
    def cancel_all_tasks(self) -> None: ...
    def send_model(
        self,
        task_name: str = "train",
        data: FLModel | None = None,
        targets: list[str] | None = None,
        min_responses: int | None = None,
        timeout: int = 0,
        callback: Callable[[FLModel], object] | None = None,
    ) -> None: ...
    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool: ...
