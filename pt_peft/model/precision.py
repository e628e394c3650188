"""The precision that a device computes in, where ``training.precision`` leaves it to the device."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch

from pt_peft.experiment.sections import Precision

FAST_ON_CPU = ("avx512_bf16", "amx_bf16")
"""Instructions with which a processor multiplies bfloat16 faster than float32; torch's names. Those of Arm were not
measured, and do not count."""


def resolved_precision(asked: Precision | Literal["auto"], device: torch.device) -> Precision:
    """What a model on `device` computes in; the same on every call, on every machine of the kind.

    Args:
        asked: ``training.precision``; ``auto`` gives bfloat16 where the device has instructions for it.
        device: where the model computes.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # Not `torch.ops.mkldnn._is_mkldnn_bf16_supported`, which is true where AVX-512 has to emulate it. An older torch
    # lacks the function, and computes in float32.
    capabilities: Callable[[], Mapping[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and any(bool(capabilities().get(name)) for name in FAST_ON_CPU)
