"""The published ``.npz`` of Google's ViTs (AugReg, SigLIP), read by timm's own loader, by numpy without pickle."""

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pt_peft.errors import UserError
from pt_peft.model.vit import ViT

PATCHES = "embedding/kernel"
"""End of the name of the patch embedding."""
_KNOWN = re.compile(
    r"embedding/(kernel|bias)|cls|pos_embedding|Transformer/(posembed_input/pos_embedding|encoder_norm/(scale|bias)"
    r"|encoderblock(_(?P<block>\d+))?/(LayerNorm_[0-3]/(scale|bias)|MlpBlock_\d/Dense_[01]/(kernel|bias)"
    r"|MultiHeadDotProductAttention_\d/(query|key|value|out)/(kernel|bias)))|(?P<pool>MAPHead_0/.*)"
)
"""Names of an encoder's arrays, without `_PREFIX`."""
_PREFIX = re.compile(r"opt/target/|params/(img/)?|")
_BESIDE = re.compile(r"(opt/target/|params/(img/)?)?(head|pre_logits)/.*|opt/state/.*|params/(txt/.*|t|b)")
"""Names of heads, of the optimiser's state and of the text tower."""


def read_npz(path: Path, model: ViT) -> tuple[dict[str, torch.Tensor], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Reads the file `path` for `model`, and leaves the model's own tensors as they are.

    Returns:
        The tensors by timm's key, with position embeddings resampled, the names of arrays that are left over, and the
        shape of each array.

    Raises:
        UserError: if the file is no such ``.npz``, or an array is missing or does not fit.
    """
    if not hasattr(model, "load_pretrained"):
        raise UserError(
            f"{path}: is .npz, which timm reads for no {type(model).__name__}; .safetensors would be right."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as .npz ({' '.join(str(error).split())[:200]}).") from None
    collector = _Collector(model, path)
    try:
        with collector, torch.no_grad():
            model.load_pretrained(str(path))
    except KeyError as error:
        name = str(error.args[0]).removesuffix(" is not a file in the archive")
        raise UserError(f"{path}: does not fit the backbone; array '{name}' is missing.") from None
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: does not fit the backbone ({' '.join(str(error).split())[:300]}).") from None
    left_over = tuple(name for name, shape in shapes.items() if not _used(name, shape, model))
    return collector.state, left_over, shapes


def _used(name: str, shape: tuple[int, ...], model: ViT) -> bool:
    """Whether the array is no part of the encoder or is read; blocks beyond the model's depth are not read."""
    if _BESIDE.fullmatch(name):
        return True
    prefix = _PREFIX.match(name)
    found = _KNOWN.fullmatch(name, prefix.end() if prefix else 0)
    if not found:
        return False
    if found["pool"]:
        return getattr(model, "attn_pool", None) is not None
    if "/encoderblock/" in name:  # all blocks in one array
        return shape[0] == len(model.blocks)
    return found["block"] is None or int(found["block"]) < len(model.blocks)


class _Collector(TorchFunctionMode):
    """Catches the loader's copies into parameters of the model, and keeps them by name."""

    def __init__(self, model: ViT, path: Path):
        super().__init__()
        self._keys = {id(parameter): key for key, parameter in model.named_parameters()}
        self._path = path
        self.state: dict[str, torch.Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is torch.Tensor.copy_ and id(args[0]) in self._keys:
            target, value = args
            key = self._keys[id(target)]
            if value.shape != target.shape:  # which a copy would stretch
                raise UserError(
                    f"{self._path}: tensor '{key}' would have shape {tuple(value.shape)}, but the backbone's has "
                    f"{tuple(target.shape)}."
                )
            self.state[key] = value
            return target
        return func(*args, **(kwargs or {}))
