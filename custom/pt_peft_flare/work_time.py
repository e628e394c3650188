"""How long a site has worked for each job, by its own clock. It survives restarts, unlike the job's own folder."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import Field

from pt_peft import schema
from pt_peft.files import write_atomically
from pt_peft.schema import Strict

FILE_NAME = "work_seconds.json"
"""In the site's workspace, beside the jobs' folders."""


class WorkSeconds(Strict):
    """The content of `FILE_NAME`."""

    seconds: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """By the job's id."""


class WorkTime:
    """The time of one job. A task that does not come back, as its process was killed, is not counted."""

    def __init__(self, folder: Path, job: str):
        """Names the file.

        Args:
            folder: the site's workspace.
            job: the job's id.
        """
        self._path = folder / FILE_NAME
        self._job = job

    def seconds(self) -> float:
        """Seconds so far. Raises UserError if the file is damaged."""
        return self._read().seconds.get(self._job, 0.0)

    @contextmanager
    def counted(self) -> Generator[None]:
        """Adds the time that the block takes. Raises UserError if the file is damaged, OSError if it is not written."""
        started = time.monotonic()
        try:
            yield
        finally:
            with FileLock(f"{self._path}.lock"):
                before = self._read().seconds
                now = {**before, self._job: before.get(self._job, 0.0) + time.monotonic() - started}
                write_atomically(self._path, WorkSeconds(seconds=now).model_dump_json(indent=1).encode())

    def _read(self) -> WorkSeconds:
        return schema.read(WorkSeconds, self._path) if self._path.exists() else WorkSeconds()
