from collections.abc import Callable

from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_types import StreamError

class ByteReceiver:
    def reject(self, message: Message, error: StreamError) -> None: ...

class Cell:
    core_cell: CoreCell
    byte_receiver: ByteReceiver
    def register_request_cb(self, channel: str, topic: str, cb: Callable[[Message], Message]) -> None: ...

decode_payload: Callable[..., None]
