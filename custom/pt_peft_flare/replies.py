"""Replies of a site that could not do its task, with the reason for the lead to read."""

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

REASON = "pt_peft.reason"
FATAL = "pt_peft.fatal"


def failure(reason: str, *, fatal: bool = False) -> Shareable:
    """A reply without data.

    Args:
        reason: one sentence, shown at the server.
        fatal: whether the job makes no sense any more, for any site.
    """
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, reason)
    reply.set_header(FATAL, fatal)
    return reply
