"""A component that looks at the server's state every now and then."""

import threading
from abc import ABC, abstractmethod

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext


class Watcher(FLComponent, ABC):
    """Runs in the server's parent process, from its start to its end. A subclass says what it does in `look`."""

    def __init__(self, interval_s: float) -> None:
        """Args:
        interval_s: seconds between looks.
        """
        super().__init__()
        self._interval_s = interval_s
        self._stopped = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_START:
            threading.Thread(
                target=self._watch, args=[fl_ctx.get_engine()], name=type(self).__name__, daemon=True
            ).start()
        elif event_type == EventType.SYSTEM_END:
            self._stopped.set()

    @abstractmethod
    def look(self, engine) -> None:
        """Looks once at FLARE's server `engine`."""

    def _watch(self, engine) -> None:
        while not self._stopped.wait(self._interval_s):
            self.look(engine)
