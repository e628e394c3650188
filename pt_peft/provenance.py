"""What a written file says of the software and the machine that it comes from."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and `packages`."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def machine() -> dict:
    """Processor, cores and memory."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
