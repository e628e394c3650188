"""A notice from the server that there is a task, at which sites ask for it.

FLARE's sites ask time and again. What a site then waits is what it adds to each round: in a simulation half a second after each
time in vain, whatever the job's settings are; and asking more often is most of the traffic of small adapters.
"""

import logging
import threading
import time

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.fuel.utils.log_utils import get_obj_logger
from nvflare.private.aux_runner import AuxRunner

TOPIC = "pt_peft.task_notice"

LONGEST_S = 5.0
"""After which a site asks anyway: notices are not sent again if they are lost."""
_LOOK_S = 0.1
"""How often a waiting site looks whether its job is over."""


def give_notice(fl_ctx: FLContext) -> None:
    """To all sites of the job: there is a task. Does not wait for them."""
    fl_ctx.get_engine().send_aux_request(
        targets=None, topic=TOPIC, request=Shareable(), timeout=0.0, fl_ctx=fl_ctx, optional=True, secure=False
    )


def ignore_early_notices() -> None:
    """Keeps FLARE from calling it an error when a notice comes to a site that is starting, as the simulator's do for each task."""
    get_obj_logger(AuxRunner).addFilter(
        lambda record: record.levelno < logging.ERROR or TOPIC not in record.getMessage()
    )


class TaskNotices:
    """A site's side."""

    def __init__(self, fl_ctx: FLContext):
        """From now on notices are heard. Those of earlier may have been missed, so that the first `wait` ends at once."""
        self._noticed = threading.Event()
        self._noticed.set()
        fl_ctx.get_engine().register_aux_message_handler(topic=TOPIC, message_handle_func=self._hear)

    def _hear(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        self._noticed.set()
        return make_reply(ReturnCode.OK)

    def wait(self, fl_ctx: FLContext) -> None:
        """Until there was a notice since the last wait, the job is over, or `LONGEST_S` have passed."""
        over = fl_ctx.get_run_abort_signal()
        until = time.monotonic() + LONGEST_S
        while not self._noticed.wait(_LOOK_S) and time.monotonic() < until and not (over and over.triggered):
            pass
        self._noticed.clear()
