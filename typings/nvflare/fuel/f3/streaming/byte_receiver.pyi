from typing import ClassVar

from nvflare.fuel.f3.streaming.stream_types import StreamError

class RxTask:
    rx_task_map: ClassVar[dict[tuple[str, int], RxTask]]
    origin: str
    completed: bool
    def stop(self, error: StreamError | None = None, notify: bool = True) -> None: ...
