"""A component that looks at the server's state every now and then."""

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from pt_peft_flare.flare_internals import Use

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine


class Watcher(FLComponent, ABC):
    """Runs in the server's parent process, from its start to its end. A subclass says what it does in `look`.

    Without the names of FLARE that the subclass needs it does nothing, and warns.
    """

    def __init__(self, interval_s: float, internals: Use) -> None:
        """Prepares the watch; it begins with the server.

        Args:
            interval_s: seconds between looks.
            internals: the names of FLARE that `look` needs.
        """
        super().__init__()
        self._interval_s = interval_s
        self._internals = internals
        self._stopped = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begins and ends the watch."""
        if event_type == EventType.SYSTEM_START:
            if self._internals.usable():
                self.begin(cast("ServerEngine", fl_ctx.get_engine()))  # as it is in the parent process
        elif event_type == EventType.SYSTEM_END:
            self.end()

    def begin(self, engine: "ServerEngine") -> None:
        """Starts to look."""
        threading.Thread(target=self._watch, args=[engine], name=type(self).__name__, daemon=True).start()

    def end(self) -> None:
        """Looks no more."""
        self._stopped.set()

    @abstractmethod
    def look(self, engine: "ServerEngine") -> None:
        """Looks once at FLARE's server `engine`."""

    def _watch(self, engine: "ServerEngine") -> None:
        while not self._stopped.wait(self._interval_s):
            self.look(engine)
