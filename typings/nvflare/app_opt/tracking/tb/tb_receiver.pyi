from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.tracking.tb.tb_event_writer import TensorBoardEventWriter

class TBAnalyticsReceiver(FLComponent):
    root_log_dir: str
    writers_table: dict[str, TensorBoardEventWriter]
    def __init__(self, tb_folder: str = "tb_events", events: list[str] | None = None) -> None: ...
    def initialize(self, fl_ctx: FLContext) -> None: ...
    def finalize(self, fl_ctx: FLContext) -> None: ...
