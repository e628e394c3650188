from collections.abc import Callable

from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.message import Message

class Cell:
    core_cell: CoreCell
    def register_request_cb(self, channel: str, topic: str, cb: Callable[[Message], Message]) -> None: ...

decode_payload: Callable[..., None]
