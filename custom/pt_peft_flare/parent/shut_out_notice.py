"""Says in a site's log that an admin has shut the site out."""

import logging
from typing import TYPE_CHECKING, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.message import Message

from pt_peft_flare.flare_internals import SHUT_OUT_NOTICE

if TYPE_CHECKING:
    from nvflare.private.fed.client.client_engine import ClientEngine

log = logging.getLogger(__name__)
DISABLED = "is disabled"
"""How FLARE's server ends what it answers a site that is shut out."""


class ShutOutNotice(FLComponent):
    """Runs in a site's parent process, whose own log says no more than ``client_quit``, every five seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._out = False

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begins to listen before the site registers."""
        if event_type == EventType.SYSTEM_BOOTSTRAP and SHUT_OUT_NOTICE.usable():
            engine = cast("ClientEngine", fl_ctx.get_engine())
            engine.get_cell().core_cell.add_incoming_reply_filter("*", "*", self.hear)

    def hear(self, answer: Message) -> None:
        """Looks at an answer that has come; says once that the site is shut out, and once that it is not any more."""
        if answer.get_header(MessageHeaderKey.CHANNEL) != CellChannel.SERVER_MAIN:
            return
        code = answer.get_header(MessageHeaderKey.RETURN_CODE)
        error = str(answer.get_header(MessageHeaderKey.ERROR))
        is_out = code == ReturnCode.UNAUTHENTICATED and error.endswith(DISABLED)
        if is_out and not self._out:
            log.warning(
                "an admin of the federation has shut this site out: it takes part in nothing until the admin lets it "
                "in again"
            )
        elif self._out and code == ReturnCode.OK:
            log.warning("this site is let in again")
        if is_out or code == ReturnCode.OK:
            self._out = is_out
