"""Looks at each message from outside in the server's parent process, through which they all come."""

from typing import TYPE_CHECKING, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from pt_peft_flare import gate

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine


class Doorkeeper(FLComponent):
    """Refuses what no honest site or person sends, see `gate`."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begins when the server starts. Raises FlareChanged for another FLARE than the one that is known."""
        if event_type != EventType.SYSTEM_START:
            return
        cell = cast("ServerEngine", fl_ctx.get_engine()).server.cell
        gate.Inbox(gate.PARENT_BYTES).watch(cell)
        cell.core_cell.add_incoming_filter("*", "*", gate.admit)
