"""Weights files as mappings of names to tensors. Tensors are mapped, not copied, where the format allows it."""

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
"""Endings of weights files, in any case. ``.npz`` is read by `pt_peft.model.weights.npz`."""


class _Ignored:
    """Stands for a record beside the weights. It takes whatever the file gives it, and does nothing."""

    def __new__(cls, *content: object) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


_IGNORED = (
    "argparse.Namespace",
    *(f"pathlib{module}.{kind}Path" for module in ("", "._local") for kind in ("Posix", "Windows", "PurePosix")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
"""Records that projects save beside the weights: arguments (MAE, DINO, timm), paths, and metrics of numpy, whose names
changed with its version 2. Their own code is not run, as numpy's was not made for hostile files."""


def read_file(path: Path) -> Mapping[Any, object]:
    """Reads a weights file.

    The tensors are private mappings of the file where the format allows it: processes that read one file share its
    pages, and a tensor that is changed in place takes pages of its own and leaves the file alone.

    Returns:
        Tensors by name; for a file of `torch.save` any nesting of containers with tensors in them.

    Raises:
        UserError: if the file cannot be read, is damaged, or would have to run code to be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error}).") from None
    if suffix in PICKLED:
        return _read_pickled(path)
    raise UserError(f"{path}: ends in '{path.suffix}'; {', '.join(SUFFIXES)} would be right.")


def _read_pickled(path: Path) -> Mapping[Any, object]:
    mapped = _can_be_mapped(path)
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED]):
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
        found = {*torch.serialization.get_unsafe_globals_in_checkpoint(path)}.difference(_IGNORED)
    except Exception:  # it looks into the same file
        found = set[str]()
    named = f" ({', '.join(sorted(found)[:3])}{', …' if len(found) > 3 else ''})" if found else ""
    return (
        f"{path}: is not only tensors and plain containers{named}, and reading anything else could run code; the state "
        "dict alone, saved as .safetensors, would be right."
    )
