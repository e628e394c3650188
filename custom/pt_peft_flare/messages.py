"""What server and sites tell each other beside FLARE's own headers."""

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

REASON = "pt_peft.reason"
"""Header of a failed reply: why."""
SINCE = "pt_peft.since"
"""Metadata of a task: number of finished rounds whose aggregate the site is taken to hold already."""
SITES_CHANGED = "pt_peft.sites_changed"
"""FLARE app command to a job's process: the sites that take part, or their tokens, have changed."""
SITES_SHUT_OUT = "pt_peft.sites_shut_out"
"""FLARE app command to a job's process: these ``sites`` may take no further part."""
STATUS = "pt_peft.status"
"""FLARE app command to a job's process: how far is it?"""
MAX_REASON = 500
"""Characters of a failure's reason that travel, or are believed."""


def failure(reason: str) -> Shareable:
    """The reply of a site that could not do its task.

    Args:
        reason: one sentence, shown at the server.
    """
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, reason)
    return reply


def reason_of(reply: Shareable) -> str:
    """Why a site could not do its task, on one printable line: what it says is not to be trusted."""
    return printable(str(reply.get_header(REASON, reply.get_return_code())))


def printable(reason: str) -> str:
    """The beginning of what somebody else says, on one printable line."""
    return one_line(reason[:MAX_REASON])


def one_line(text: str) -> str:
    """`text` with a blank for each character that is not printable."""
    return "".join(character if character.isprintable() else " " for character in text)
