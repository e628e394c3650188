"""The software and the machine that a result comes from."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict


class Machine(TypedDict):
    """A machine's hardware."""

    cpu: str
    """The processor's name."""
    cores: int | None
    """Logical cores; None where the system does not say."""
    memory_gib: float
    """Memory in GiB."""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of `packages`."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def machine() -> Machine:
    """Describes this machine."""
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
