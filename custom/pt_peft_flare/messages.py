"""What server and sites tell each other beside FLARE's own headers."""

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from pt_peft import reasons
from pt_peft.errors import one_line
from pt_peft.reasons import Reason, read_reason

REASON = "pt_peft.reason"
"""Header of a failed reply: why, as the JSON of a `pt_peft.reasons.SiteReason`."""
SINCE = "pt_peft.since"
"""Metadata of a task: number of finished rounds whose aggregate the site is taken to hold already."""
TAKEN = "pt_peft.taken"
"""Metadata of a task: round of the site's last result that the server has taken, -1 if none; None if it is not said."""
STAGE = "pt_peft.stage"
"""Metadata of a task ``statistics`` and of its result: name of the `pt_peft.experiment.statistics.Stage`."""
SITES_CHANGED = "pt_peft.sites_changed"
"""FLARE app command to a job's process: the sites that take part, or their tokens, have changed."""
SITES_SHUT_OUT = "pt_peft.sites_shut_out"
"""FLARE app command to a job's process: these ``sites`` may take no further part."""
SHUT_OUT_SITES = "pt_peft.shut_out"
"""In what the server answers FLARE's command ``check_status``: the sites that an admin has shut out."""
STATUS = "pt_peft.status"
"""FLARE app command to a job's process: how far is it?"""
MAX_ANSWER = 500
"""Characters that are kept of what FLARE's process of a site answers."""
RETURN_CODES = frozenset(value for name, value in vars(ReturnCode).items() if name.isupper())
"""FLARE's words for what became of a task."""


def failure(reason: Reason) -> Shareable:
    """The reply of a site that could not do its task, for this reason."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, reason.model_dump_json())
    return reply


def reason_of(reply: Shareable) -> Reason:
    """Why a site could not do its task: what it says, which may be anything, or FLARE's return code."""
    said = reply.get_header(REASON)
    if said is not None:
        return read_reason(said) or reasons.Failed()
    code = reply.get_return_code()
    return reasons.Flare(return_code=code if code in RETURN_CODES else None)


def printable(reason: str) -> str:
    """The beginning of what somebody else says, on one printable line."""
    return one_line(reason[:MAX_ANSWER])
