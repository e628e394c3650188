"""The server gives notice of each task, and sites ask for it then.

FLARE's sites ask time and again, and each round gets longer by what they wait between: in a simulation half a second,
for any settings of the job. And with small adapters most of the traffic would be requests.
"""

import logging
import threading
import time

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply

from pt_peft_flare.flare_internals import EARLY_NOTICES

TOPIC = "pt_peft.task_notice"

LONGEST_S = 5.0
"""After which a site asks anyway: a lost notice is not sent again."""
_LOOK_S = 0.1
"""How often a waiting site looks whether its job is over."""


def give_notice(fl_ctx: FLContext) -> None:
    """Tells all sites of the job that there is a task, without waiting for them."""
    fl_ctx.get_engine().send_aux_request(
        targets=None, topic=TOPIC, request=Shareable(), timeout=0.0, fl_ctx=fl_ctx, optional=True, secure=False
    )


def ignore_early_notices() -> None:
    """Keeps FLARE from logging an error for a notice that comes while a site starts, in the simulator for each task."""
    if EARLY_NOTICES.usable():
        logging.getLogger("nvflare.private.aux_runner.AuxRunner").addFilter(
            lambda record: record.levelno < logging.ERROR or TOPIC not in record.getMessage()
        )


class TaskNotices:
    """Hears the notices at a site."""

    def __init__(self, fl_ctx: FLContext):
        """Hears notices from now on. Earlier ones may have been missed, so the first `wait` ends at once."""
        self._noticed = threading.Event()
        self._noticed.set()
        fl_ctx.get_engine().register_aux_message_handler(topic=TOPIC, message_handle_func=self._hear)

    def _hear(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        self._noticed.set()
        return make_reply(ReturnCode.OK)

    def wait(self, fl_ctx: FLContext) -> None:
        """Waits until a notice has come since the last wait, the job is over, or `LONGEST_S` have passed."""
        over = fl_ctx.get_run_abort_signal()
        until = time.monotonic() + LONGEST_S
        while not self._noticed.wait(_LOOK_S) and time.monotonic() < until and not (over and over.triggered):
            pass
        self._noticed.clear()
