"""What torch's GPUs have room for, and how exactly they compute. Nothing here touches a GPU on behalf of a CPU."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from pt_peft.environment import VISIBLE

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# torch makes what is set here at run time, so that no type checker finds it.
_CUDNN: Any = torch.backends.cudnn
_MEMORY: Any = torch.utils.deterministic


def given() -> str | None:
    """The GPUs that this process was given, as the environment has them; None if it was given all, or none."""
    visible = os.environ.get(VISIBLE, "")
    return visible if re.match(r"\s*(\d|GPU-|MIG-)", visible) else None


def shown(device: torch.device) -> str:
    """A device for a log: a GPU with its name, and with those that this process was given, by which it is numbered."""
    if device.type != "cuda":
        return str(device)
    among = f", {VISIBLE} {one}" if (one := given()) else ""
    return f"{device} ({torch.cuda.get_device_name(device)}{among})"


def room(device: torch.device) -> int:
    """Bytes that this process may still allocate on a GPU, by what is free there and by its share of it."""
    number = torch.cuda.current_device() if device == torch.device("cuda") else device.index  # torch asks for one
    free, total = torch.cuda.mem_get_info(number)
    share = torch.cuda.get_per_process_memory_fraction(number)
    own = torch.cuda.memory_reserved(number)
    return max(0, min(free + own, int(share * total)) - torch.cuda.memory_allocated(number))


def limit(device: torch.device, share: float) -> None:
    """Lets this process take that share of a GPU's memory at most; torch then raises OutOfMemoryError for more."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device)  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def exact(device: torch.device) -> Generator[None]:
    """Within the context a GPU computes float32 in float32, and the same again if asked again; a CPU always does.

    Without it torch lets convolutions (the patch embedding) round to TF32, a mantissa of 10 bits in place of 23, and
    attention add up its gradients in any order; only an operation that torch cannot make deterministic then raises
    RuntimeError. If torch were to warn of those alone, attention would stay as it is. Everything of the process is as
    before afterwards.
    """
    if device.type != "cuda":
        yield
        return
    before = (
        torch.get_float32_matmul_precision(), _CUDNN.conv.fp32_precision, _CUDNN.benchmark,
        torch.get_deterministic_debug_mode(), _MEMORY.fill_uninitialized_memory, os.environ.get(_WORKSPACE),
    )  # fmt: skip
    try:
        _set("highest", "ieee", False, "error", False, before[-1] or ":4096:8")
        yield
    finally:
        _set(*before)


def _set(matmul: str, conv: str, benchmark: bool, deterministic: int | str, fill: bool, workspace: str | None) -> None:
    torch.set_float32_matmul_precision(matmul)
    _CUDNN.conv.fp32_precision = conv
    _CUDNN.benchmark = benchmark
    torch.set_deterministic_debug_mode(deterministic)  # `use_deterministic_algorithms` would import the compiler
    _MEMORY.fill_uninitialized_memory = fill
    if workspace is None:
        os.environ.pop(_WORKSPACE, None)
    else:
        os.environ[_WORKSPACE] = workspace  # without it torch refuses cuBLAS in deterministic mode
