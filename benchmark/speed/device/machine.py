"""What the results come from: the code, the machine and its GPU, and how torch computes there."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch

from benchmark.speed.device import packed
from pt_peft.environment import machine, versions

PACKAGES = ("torch", "timm", "peft", "transformers", "monai", "numpy", "safetensors", "pydantic", "pillow", "triton")
"""The packages whose versions a result depends on."""


def origin(device: torch.device) -> dict[str, Any]:
    """Describes the code, the software and the machine."""
    return {
        **_code(),
        "versions": versions([name for name in PACKAGES if _installed(name)]),
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
    }


def compute_in_float32() -> None:
    """Turns TF32 off, in which torch may compute float32 on a GPU."""
    torch.set_float32_matmul_precision("highest")
    cudnn: Any = torch.backends.cudnn  # torch makes what is set here at run time
    cudnn.conv.fp32_precision = "ieee"


def synchronize(device: torch.device) -> None:
    """Waits until `device` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _code() -> dict[str, Any]:
    if about := packed.about():
        return {"commit": about["commit"], "dirty": about["dirty"], "packed": True}
    from benchmark.measurements.provenance import provenance

    try:
        found = provenance()
    except (OSError, importlib.metadata.PackageNotFoundError):  # no git, or no FLARE
        return {"commit": "", "dirty": False, "packed": False}
    return {"commit": found["commit"], "dirty": found["dirty"], "packed": False}


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _gpu(device: torch.device) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "sdpa": {
            "flash": torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.is_flash_attention_available(),
            "memory_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        },
        "compiles": importlib.util.find_spec("triton") is not None and shutil.which("cc") is not None,
        "bfloat16": torch.cuda.is_bf16_supported(),
    }


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.splitlines()[0] if said else None
