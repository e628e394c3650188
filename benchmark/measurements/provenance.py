"""The provenance of a result file: commit, versions, machine and time."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from pt_peft.environment import Machine, machine, versions

PACKAGES = ("nvflare", "torch", "timm", "monai", "peft", "numpy")
"""The packages whose versions a result depends on."""


class Provenance(TypedDict):
    """Where a result comes from."""

    commit: str
    """The commit that was checked out, in hex; empty outside a clone."""
    dirty: bool
    """Whether tracked files other than results differed from the commit."""
    versions: dict[str, str]
    """Versions of Python and of `PACKAGES`, by name."""
    machine: Machine
    time: str
    """When the measurement began, UTC, ISO 8601."""


def provenance() -> Provenance:
    """The provenance of a result that is measured now, from the code in this clone."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmark/results")),
        "versions": versions(PACKAGES),
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
