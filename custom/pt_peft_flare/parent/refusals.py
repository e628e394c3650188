"""Tells a job's process at the server which sites could not be given the job, and why."""

import json
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from pt_peft.files import write_atomically
from pt_peft_flare.messages import printable

FILE_NAME = "refused.json"
"""In the job's folder at the server."""
MARK = "NVFLARE_ERROR: "
"""How FLARE begins what a site answers when it refuses."""


class Refusals(FLComponent):
    """Runs in the server's parent process, which alone hears what sites answer when a job is deployed."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Writes the file before the job's process starts."""
        if event_type != EventType.JOB_DEPLOYED:
            return
        refused = refusals(fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL) or [])
        folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_prop(FLContextKey.CURRENT_JOB_ID)))
        write_atomically(folder / FILE_NAME, json.dumps(refused).encode())


def refusals(detail: list[str]) -> dict[str, str]:
    """The reasons of sites that refused, by site; `detail` is FLARE's list of ``SITE: ANSWER``."""
    answers = (line.partition(": ") for line in detail)
    return {site: printable(answer.removeprefix(MARK)) for site, colon, answer in answers if colon and answer != "OK"}


def read_refusals(folder: Path) -> dict[str, str]:
    """What `Refusals` has written to the folder of a job; empty in a simulation."""
    path = folder / FILE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
