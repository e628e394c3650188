"""Keeps with each job that failed its reason, where ``nvflare job meta`` shows it."""

import json
import re
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager

from pt_peft_flare.messages import printable
from pt_peft_flare.run_record import FILE_NAME

REASON = "reason"
"""Field of a job's metadata."""
ERRORS = "error_log.txt"
_ERROR = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ - (?P<who>\S+) - (?:ERROR|CRITICAL) - (?P<what>.*)$", re.MULTILINE)


class JobManager(SimpleJobDefManager):
    """FLARE's store of jobs, in the server's parent process."""

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
