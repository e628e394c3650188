"""Takes only jobs whose metadata are a lead's, and keeps with each that failed its reason for ``nvflare job meta``."""

import json
import re
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import Job

from pt_peft_flare.flare_internals import JOB_META
from pt_peft_flare.messages import printable
from pt_peft_flare.parent.job_meta import problem_of_stored, problem_of_submitted
from pt_peft_flare.run_record import FILE_NAME

REASON = "reason"
"""Field of a job's metadata."""
ERRORS = "error_log.txt"
_ERROR = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ - (?P<who>\S+) - (?:ERROR|CRITICAL) - (?P<what>.*)$", re.MULTILINE)


class JobManager(SimpleJobDefManager):
    """FLARE's store of jobs, in the server's parent process."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Tells a person who submits a job what is wrong with its ``meta.json``; the job is then not stored."""
        if event_type == EventType.SYSTEM_START:
            JOB_META.require()
        elif event_type == EventType.SUBMIT_JOB and (
            problem := problem_of_submitted(fl_ctx.get_prop(FLContextKey.JOB_META) or {})
        ):
            fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, printable(problem), private=True, sticky=False)

    def get_app(self, job: Job, app_name: str, fl_ctx: FLContext) -> bytes:
        """Reads an app of a job, which the server is about to deploy, first of all to itself.

        Raises:
            ValueError: if the job's record is not as FLARE writes it.
        """
        if problem := problem_of_stored(job.job_id, job.meta):
            self.update_meta(job.job_id, {REASON: problem}, fl_ctx)
            raise ValueError(problem)
        return super().get_app(job, app_name, fl_ctx)

    def save_workspace(self, jid: str, data: list[str], fl_ctx: FLContext) -> str:
        """Keeps the folders `data` of a job that has ended, and first its reason if it failed."""
        if reason := next(filter(None, (failure_of(Path(folder)) for folder in data)), None):
            self.update_meta(jid, {REASON: reason}, fl_ctx)
        return super().save_workspace(jid, data, fl_ctx)


def failure_of(folder: Path) -> str | None:
    """Why the job whose folder this is failed: by its record, or by its first error if it came to no record."""
    try:
        record = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        return record["reason"]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    try:
        error = _ERROR.search((folder / ERRORS).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return printable(error["what"]) if error else None
