from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.workspace import Workspace

class ServerEngineSpec:
    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None: ...
    def get_clients(self) -> list[Client]: ...
    def sync_clients_from_main_process(self) -> None: ...
    def new_context(self) -> AbstractContextManager[FLContext]: ...
    def get_workspace(self) -> Workspace: ...
    def get_component(self, component_id: str) -> object: ...
    def register_aux_message_handler(
        self, topic: str, message_handle_func: Callable[[str, Shareable, FLContext], Shareable]
    ) -> None: ...
    def send_aux_request(
        self,
        targets: list[str] | None,
        topic: str,
        request: Shareable,
        timeout: float,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
    ) -> dict[str, Any]: ...
    def register_app_command(self, topic: str, cmd_func: Callable[[str, Any, FLContext], dict[str, Any]]) -> None: ...
