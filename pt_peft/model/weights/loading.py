"""Loads a weights file into a timm model, strictly: the experiment allows each tensor that is missing or left over."""

import inspect
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from pt_peft import reasons
from pt_peft.errors import UserError, told_as
from pt_peft.experiment.sections import Backbone
from pt_peft.model.vit import ViT
from pt_peft.model.weights import huggingface
from pt_peft.model.weights.formats import read_file
from pt_peft.model.weights.layouts import ANCHORS, Encoder, find_encoder
from pt_peft.model.weights.npz import PATCHES as NPZ_PATCHES
from pt_peft.model.weights.npz import read_npz

SHOWN = 12
"""Names that an error shows at most."""
PRETEXT = ("head.", "head_dist.", "mask_token", "pooler.dense.", "embeddings.position_ids")
"""Beginnings of the keys of heads and of masked pre-training, beside the model's own classifier. The last two are of
Hugging Face transformers, the second of them no weights."""
PATCHES = "patch_embed.proj.weight"
"""Key of the patch embedding in a model."""
MOST_MISSING = 0.1
"""Largest share of a backbone's parameters that may be drawn from the seed: more is no pretrained backbone."""
NEVER_MISSING = ("blocks.", PATCHES)
"""Beginnings of the keys that a file must have."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How far a weights file and a model are alike, but for their heads."""

    missing: tuple[str, ...]
    """The model's tensors that the file does not have, which the experiment excuses."""
    left_over: tuple[str, ...]
    """The file's tensors that the model does not have, which the experiment excuses."""
    same_patches: bool
    """Whether the file's patch embedding is of the model's patch size, so that it was not resampled."""


@told_as(reasons.Backbone())
def load_weights(model: ViT, weights: Path, backbone: Backbone, head: str) -> Fit:
    """Loads an image encoder into all of a model but its head.

    Tensors that the file has in the right type become the model's without a copy, see `read_file`.

    Args:
        model: in float32, on the CPU or on the meta device.
        weights: the file.
        backbone: what the model was made from, with the exceptions from strictness.
        head: path of the classifier in the model.

    Raises:
        UserError: if tensors are missing, left over, of a wrong shape or kind, or not finite; the message names them.
    """
    if weights.suffix.lower() == ".npz":
        state, left_over, shapes = read_npz(weights, model)
        state = {key: _float32(value, f"{weights}: tensor '{key}'") for key, value in state.items()}
        names, in_file = {key: key for key in state}, state
    else:
        encoder = find_encoder(read_file(weights), weights)
        if encoder.left_out:
            _logger.info("%s: left out %s", weights, _shown(encoder.left_out))
        state, names = _remapped(encoder, model, backbone.name, weights)
        in_file, left_over = encoder.tensors, encoder.left_over
        shapes = {name: tuple(value.shape) for name, value in encoder.tensors.items()}
    pretext = (f"{head}.", *PRETEXT)
    state = {key: value for key, value in state.items() if not key.startswith(pretext)}
    own = model.state_dict()
    fitting = {
        key: _fitting(value, own[key], in_file.get(key, value), f"{weights}: tensor '{names[key]}'")
        for key, value in state.items()
        if key in own
    }
    missing = [key for key in own if key not in fitting and not key.startswith(f"{head}.")]
    unused = {**{name: name for name in left_over}, **{names[key]: key for key in state if key not in own}}
    encoder_size = sum(value.numel() for key, value in own.items() if not key.startswith(f"{head}."))
    too_much = sum(own[key].numel() for key in missing) > MOST_MISSING * encoder_size
    random = [key for key in missing if too_much or key.startswith(NEVER_MISSING)]
    _refuse(
        weights,
        backbone.name,
        random=bool(random),
        missing=random or [key for key in missing if not _any(backbone.allow_missing, key)],
        left_over=[name for name, key in unused.items() if not _any(backbone.allow_unused, name, key)],
    )
    model.load_state_dict(_independent(fitting), strict=False, assign=True)
    in_files = _shapes_in_files(own[PATCHES])
    patches = [shape for name, shape in shapes.items() if name.endswith((*ANCHORS, NPZ_PATCHES))]
    return Fit(tuple(missing), tuple(unused), any(shape in in_files for shape in patches))


def _shapes_in_files(patches: torch.Tensor) -> set[tuple[int, ...]]:
    """The shapes in which files have a model's patch embedding (D,3,H,W): that, flat (D,3HW), and JAX's (H,W,3,D)."""
    shape = tuple(patches.shape)
    return {shape, (shape[0], math.prod(shape[1:])), (*shape[2:], *reversed(shape[:2]))}


def _remapped(encoder: Encoder, model: ViT, name: str, weights: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors by timm's key, resampled to the model's image and patch size, and their full names in the file."""
    tensors = {
        key: _float32(value, f"{weights}: tensor '{encoder.names[key]}'") for key, value in encoder.tensors.items()
    }
    names = encoder.names
    if not tensors.keys().isdisjoint(huggingface.PATCHES):
        tensors, names = _from_transformers(tensors, names, weights)
    full_names = {id(tensors[key]): full_name for key, full_name in names.items()}
    remapping = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if remapping is None:
        return tensors, names
    options: dict[str, object] = {}
    if "adapt_layer_scale" in inspect.signature(remapping).parameters:
        options["adapt_layer_scale"] = (
            True  # timm says so for DeiT III alone, and no other layout has the names it renames
        )
    if "flexivit" in name:
        options.update(interpolation="bilinear", antialias=False)  # as timm says for these
    try:
        state: dict[str, torch.Tensor] = remapping(dict(tensors), model, **options)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{weights}: does not fit the backbone ({' '.join(str(error).split())[:300]}).") from None
    return state, {key: full_names.get(id(value)) or names.get(key, key) for key, value in state.items()}


def _from_transformers(
    tensors: dict[str, torch.Tensor], names: dict[str, str], weights: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that have the names of Hugging Face transformers by timm's key, and their full names in the file."""
    try:
        renamed = huggingface.as_timm(tensors)
    except (RuntimeError, IndexError) as error:
        raise UserError(f"{weights}: tensors do not fit one another ({' '.join(str(error).split())[:300]}).") from None
    return (
        {key: value for key, (value, _) in renamed.items()},
        {key: " + ".join(names[name] for name in parts) for key, (_, parts) in renamed.items()},
    )


def _float32(value: torch.Tensor, where: str) -> torch.Tensor:
    """`value` in float32 if it is of floating point, else as it is; not copied if it is float32 already.

    Raises:
        UserError: if it is not dense or not finite; the message begins with `where`.
    """
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.is_complex() or value.is_quantized:
        raise UserError(f"{where} is of another kind than a dense tensor of real numbers.")
    if not value.is_floating_point():
        return value
    value = value.float().contiguous()
    # Not `isfinite`, which takes the memory of the tensor again; both ends are NaN if any value is.
    if value.numel() and not all(end.isfinite() for end in value.aminmax()):
        raise UserError(f"{where} has values that are not finite.")
    return value


def _fitting(value: torch.Tensor, own: torch.Tensor, seen: torch.Tensor, where: str) -> torch.Tensor:
    """`value` in the dtype of the model's tensor `own`, whose place it takes.

    Args:
        value: after timm's remapping.
        own: the model's tensor.
        seen: as the file has it.
        where: beginning of the error.

    Raises:
        UserError: if the shapes differ, or only one of the two is of floating point.
    """
    if value.shape != own.shape:
        raise UserError(f"{where} has shape {tuple(seen.shape)}, but the backbone's has {tuple(own.shape)}.")
    if value.is_floating_point() != own.is_floating_point():
        raise UserError(f"{where} is {value.dtype}, but the backbone's is {own.dtype}.")
    return value.to(own.dtype)


def _independent(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` with memory of its own for each tensor: training must not tie tensors that a file has under two names."""
    seen: set[int] = set()
    independent: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        memory = value.untyped_storage().data_ptr()
        independent[key] = value.clone() if memory in seen else value
        seen.add(memory)
    return independent


def _refuse(weights: Path, name: str, *, random: bool, missing: Sequence[str], left_over: Sequence[str]) -> None:
    """Raises UserError unless there is nothing missing or left over.

    Args:
        weights: the file.
        name: the backbone's.
        random: whether the backbone would be random without what is missing, so that no pattern may allow it.
        missing: keys.
        left_over: names in the file.
    """
    found = [f"{what} {_shown(names)}" for what, names in (("missing", missing), ("left over", left_over)) if names]
    if not found:
        return
    fields = [field for field, names in (("allow_missing", missing), ("allow_unused", left_over)) if names]
    remedy = (
        ": the blocks and the patch embedding must be in the file whole, and of all parameters at least "
        f"{1 - MOST_MISSING:.0%}, whatever backbone.allow_missing says."
        if random
        else f", or patterns of these names in the experiment's field{'s' if len(fields) > 1 else ''} "
        f"{' and '.join(f'backbone.{field}' for field in fields)}."
    )
    raise UserError(
        f"{weights}: does not fit the backbone {name}; {'; '.join(found)}. Weights of that backbone would be right"
        f"{remedy}"
    )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(name[:100] for name in names[:SHOWN])}{more})"
    )


def _any(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
