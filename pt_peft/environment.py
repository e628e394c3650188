"""The software and the machine that a result comes from, and what the machine gives a process."""

import functools
import hashlib
import importlib
import importlib.util
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypedDict

from pydantic import Field

import pt_peft
from pt_peft.schema import Strict

METHOD_CODE = ("exchange", "experiment", "methods", "model", "schema.py", "seeds.py", "statistics", "torch_random.py")
"""Packages and modules of `pt_peft` that define a method: what it trains and what it exchanges."""
METHOD_LIBRARIES = ("timm", "peft")
"""Packages that build the model whose tensors are exchanged."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the GPUs that a process sees; torch counts them from 0 in this order."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""In a container, where control groups are of version 2: microseconds of all cores in a period, and the period."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
"""The first 16 digits of a SHA-256 in hex: enough to tell versions apart, not to prove one."""


class Code(Strict):
    """Which code made a result. Who runs another may say what it likes: it shows mistakes, and proves nothing."""

    version: Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,2}$")]
    """The package's."""
    source: Digest
    """Of all source of `pt_peft` and `pt_peft_flare`."""
    method: Digest
    """Of what defines the methods: `METHOD_CODE`, and the versions of `METHOD_LIBRARIES`."""


@functools.cache
def own_code() -> Code:
    """The code that runs here."""
    folders = [*pt_peft.__path__]
    if importlib.util.find_spec("pt_peft_flare"):
        # Imported, as it may say itself where else its modules are; that imports nothing further.
        folders += importlib.import_module("pt_peft_flare").__path__
    source = hashlib.sha256("\n".join(source_digest(Path(folder)) for folder in folders).encode()).hexdigest()
    return Code(version=pt_peft.__version__, source=source[:16], method=method_digest()[:16])


@functools.cache
def method_digest() -> str:
    """SHA-256 in hex over what defines the methods, see `Code`."""
    parts = [
        source_digest(Path(pt_peft.__path__[0]), METHOD_CODE),
        *(f"{name} {version(name)}" for name in METHOD_LIBRARIES),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def source_digest(package: Path, names: Iterable[str] = (".",)) -> str:
    """SHA-256 in hex over Python source: names of files and their content, whatever ends their lines.

    A clone, an installed wheel and a job's bundle have the same digest.

    Args:
        package: folder of a package.
        names: files and folders in it.
    """
    places = [package / name for name in names]
    files = {file for place in places for file in ([place] if place.suffix else place.rglob("*.py"))}
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(package).as_posix(), file) for file in files):
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


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


def usable_cores() -> int:
    """Number of cores that this process may use, also in a container that has the time of some of them alone."""
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    try:
        allowed, period = QUOTA.read_text(encoding="ascii").split()
        return max(1, min(visible, int(allowed) // int(period)))
    except (OSError, ValueError):  # no container, or one that may use all: 'max'
        return visible


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
