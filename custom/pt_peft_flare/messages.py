"""What server and sites tell each other beside FLARE's own headers."""

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

REASON = "pt_peft.reason"
FATAL = "pt_peft.fatal"
SINCE = "pt_peft.since"
"""Number of finished rounds whose aggregate the site is taken to hold already."""
SITES_CHANGED = "pt_peft.sites_changed"
"""FLARE app command to a job's process: the sites that take part, or their tokens, have changed."""
STATUS = "pt_peft.status"
"""FLARE app command to a job's process: how far it is."""


def failure(reason: str, *, fatal: bool = False) -> Shareable:
    """The reply of a site that could not do its task.

    Args:
        reason: one sentence, shown at the server.
        fatal: whether the job makes no sense any more, for any site.
    """
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, reason)
    reply.set_header(FATAL, fatal)
    return reply
