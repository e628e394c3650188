"""The results as they come: each is on disk before the next measurement starts."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from benchmark.speed.device.summary import summary
from pt_peft.errors import UserError
from pt_peft.files import write_atomically

FILE = "results.jsonl"
SUMMARY = "summary.md"
Status = Literal["done", "skipped", "failed"]
Record = dict[str, Any]
"""``section``, ``step``, ``status``, ``seconds``, and the values found or ``why`` there are none."""


class Results:
    """A folder with a line of JSON for each step, and a summary that is written anew with each measurement."""

    def __init__(self, folder: Path):
        """Makes `folder` if need be. Raises UserError if it has results already."""
        if (folder / FILE).exists():
            raise UserError(f"--out: {folder} has results already; the name of a new folder would be right.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.records: list[Record] = []
        self._lock = threading.Lock()

    def add(
        self, section: str, step: str, status: Status, seconds: float, values: Mapping[str, Any] | None = None
    ) -> None:
        """Adds a record. What was measured is then on disk, and in the summary."""
        record = {"section": section, "step": step, "status": status, "seconds": round(seconds, 2), **(values or {})}
        with self._lock:
            self.records.append(record)
            # One short write to a file opened for appending is not torn; `read` leaves out a line that is.
            with open(self.folder / FILE, "ab") as file:
                file.write(json.dumps(record, default=str).encode() + b"\n")
                if status != "skipped":  # these come by the dozen, and the disk would cost the seconds that are left
                    file.flush()
                    os.fsync(file.fileno())
        if status != "skipped":
            self.summarise()

    def summarise(self) -> None:
        """Writes the summary of all records so far."""
        with self._lock:
            text = summary(self.records)
        write_atomically(self.folder / SUMMARY, text.encode())


def read(folder: Path) -> list[Record]:
    """The records in `folder`; a last line that was cut off is left out."""
    *lines, _ = (folder / FILE).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]
