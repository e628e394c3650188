from collections.abc import Callable
from threading import Lock

from nvflare.fuel.f3.message import Message

class CellInfo:
    fqcn: str

class CoreCell:
    ALL_CELLS: dict[str, CoreCell]
    agent_lock: Lock
    agents: dict[str, object]
    my_info: CellInfo
    def add_incoming_filter(self, channel: str, topic: str, cb: Callable[[Message], Message | None]) -> None: ...
    def add_incoming_reply_filter(self, channel: str, topic: str, cb: Callable[[Message], object]) -> None: ...

decode_payload: Callable[..., None]
