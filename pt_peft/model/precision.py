"""What a device computes in, where ``training.precision`` leaves it to the device, and how it computes attention."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import nn

from pt_peft.experiment.sections import Precision

FAST_ON_CPU = ("avx512_bf16", "amx_bf16")
"""Instructions with which a processor multiplies bfloat16 faster than float32; torch's names. Those of Arm were not
measured, and do not count."""

MOST_TOKENS = 1025
"""Tokens of an image, up to which the products (B,H,N,N) of attention in bfloat16 keep a training step within what
`pt_peft.training.footprint` tells a site, which counts the kernel in float32. That is 512 pixels in patches of 16."""


def resolved_precision(asked: Precision | Literal["auto"], device: torch.device) -> Precision:
    """What a model on `device` computes in; the same on every call, on every machine of the kind.

    Args:
        asked: ``training.precision``; ``auto`` gives bfloat16 where the device has instructions for it.
        device: where the model computes.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if _has_bfloat16(device) else "float32"


def choose_attention(model: nn.Module, tokens: int, precision: Precision, device: torch.device) -> None:
    """Lets a model compute attention as is fastest for `precision` on `device`.

    That is torch's fused kernel, but for bfloat16 on a CPU: there the kernel's backward pass takes several times as
    long as the products of matrices that it stands for, timm's other way (``fused_attn``), equal but for rounding.

    Args:
        model: whose attention is timm's.
        tokens: of an image; a model of more than `MOST_TOKENS` keeps the kernel.
        precision: that it computes in.
        device: where it computes.
    """
    if precision == "bfloat16" and device.type == "cpu" and tokens <= MOST_TOKENS:
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                cast(Any, module).fused_attn = False


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # Not `torch.ops.mkldnn._is_mkldnn_bf16_supported`, which is true where AVX-512 has to emulate it. An older torch
    # lacks the function, and computes in float32.
    capabilities: Callable[[], Mapping[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and any(bool(capabilities().get(name)) for name in FAST_ON_CPU)
