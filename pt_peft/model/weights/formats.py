"""Weights files as mappings of names to tensors. Tensors are mapped, not copied, where the format allows it."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pt_peft.errors import UserError

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Endings of files of `torch.save`; ``.tar`` is from ``.pth.tar``, which is a single file of `torch.save` too."""
SUFFIXES = (".safetensors", *PICKLED, ".npz")
"""Endings of weights files. ``.npz`` is read by `pt_peft.model.weights.npz`."""


def read_file(path: Path) -> Mapping[Any, object]:
    """Reads a weights file.

    The tensors are private mappings of the file where the format allows it: processes that read one file share its
    pages, and a tensor that is changed in place takes pages of its own and leaves the file alone.

    Returns:
        Tensors by name; for a file of `torch.save` any nesting of containers with tensors in them.

    Raises:
        UserError: if the file cannot be read, is damaged, or would have to run code to be read.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error}).") from None
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise UserError(f"{path}: ends in '{path.suffix}'; {', '.join(SUFFIXES)} would be right.")


def _read_pickled(path: Path) -> Mapping[Any, object]:
    mapped = _can_be_mapped(path)
    try:
        # The training arguments that MAE, DINO and timm put beside the weights: a plain record, and timm allows it too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise UserError(_refusal(path)) from None
    except Exception as error:  # the unpickler raises anything on a file that is something else
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: cannot be read as a file of torch.save ({reason}).") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}; tensors by name (a state dict) would be right.")
    return cast(Mapping[Any, object], content)  # isinstance tells nothing about keys and values


def _can_be_mapped(path: Path) -> bool:
    """Whether the tensors lie in the file as they are. Raises UserError for a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(
                    f"{path}: is a TorchScript program, which is not run here; its state dict, saved as .safetensors, "
                    "would be right."
                )
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        return False  # a file of torch before version 1.6, or no weights at all


def _refusal(path: Path) -> str:
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it looks into the same file
        found = []
    named = f" ({', '.join(sorted(found)[:3])}{', …' if len(found) > 3 else ''})" if found else ""
    return (
        f"{path}: is not only tensors and plain containers{named}, and reading anything else could run code; the state "
        "dict alone, saved as .safetensors, would be right."
    )
