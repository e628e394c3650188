from collections.abc import Callable

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

class WFCommServer(FLComponent):
    def __init__(self) -> None: ...
    def check_tasks(self) -> None: ...
    def finalize_run(self, fl_ctx: FLContext) -> None: ...
    client_is_active: Callable[[str, str, FLContext], None]
    process_dead_client_report: Callable[[str, FLContext], None]
    _cleanup_inflight_tensor_downloads: Callable[[FLContext], None]
