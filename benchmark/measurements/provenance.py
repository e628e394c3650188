"""What a result file says of where it comes from."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

from pt_peft.environment import machine, versions

PACKAGES = ("nvflare", "torch", "timm", "monai", "peft", "numpy")


def provenance() -> dict:
    """Commit, whether the tree had changes (but for results), versions, machine and time (UTC)."""
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
