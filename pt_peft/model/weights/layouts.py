"""Other projects' checkpoints: finds the image encoder among training states, momentum copies, heads and text towers.

This module finds the encoder and takes wrappers off; timm's own remapping then renames its tensors.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import torch

from pt_peft.errors import UserError
from pt_peft.model.weights import huggingface

ANCHORS = {"patch_embed.proj.weight": "", "visual.conv1.weight": "visual.", **dict.fromkeys(huggingface.PATCHES, "")}
"""A tensor that every image encoder has, and the part of its name by which timm's remapping knows the layout: timm's
own and all that follow it (MAE, DINO, MoCo v3, the timm towers of open_clip and BiomedCLIP), OpenAI's CLIP, and those
of Hugging Face transformers."""

ENCODERS = (
    *("state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "params_ema", "ema", "teacher", "base_encoder"),
    *("encoder_q", "state_dict", "model", "model_state_dict", "net", "params", "backbone", "encoder", "student"),
    "module",
)
"""Names of a checkpoint's entries, and parts of tensors' names. Where it holds several encoders, the first is taken.

Averaged ones come first: EMA of timm and others, the teacher of DINO; then the encoder of MoCo v3; then MAE and DINOv2
(``model``), open_clip (``state_dict``), I-JEPA (``encoder``)."""

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of names that torch.compile, FSDP, checkpointing of activations and Lightning put around any module."""
_HEADS = {"head", "head_dist", "fc", "dino_head", "ibot_head", "projector", "predictor"}  # of DINO, iBOT, MoCo v3
_TRANSFORMERS = {"classifier", "cls_classifier", "distillation_classifier", "decoder", "visual_projection"}
_COPIES = {"momentum_encoder", "encoder_k", "student", "queue", "queue_ptr"}  # of MoCo v3 and DINO
_TEXT = {
    "text",
    "text_model",
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "attn_mask",
}
_NUMBERS = {"logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size"}  # of CLIP, as is the text
BESIDE = frozenset(_HEADS | _TRANSFORMERS | _COPIES | _TEXT | _NUMBERS)
"""Parts of names beside the encoder that belong to no encoder of images."""


@dataclass(frozen=True)
class Encoder:
    """The image encoder of a checkpoint."""

    tensors: dict[str, torch.Tensor]
    """Its tensors, under the names that timm's remapping takes."""
    names: dict[str, str]
    """The full name in the file of each tensor."""
    left_over: tuple[str, ...]
    """Full names of tensors beside the encoder that belong to no known layout."""
    left_out: tuple[str, ...]
    """Full names of heads, decoders, text towers and copies."""


def find_encoder(content: Mapping[Any, object], path: Path) -> Encoder:
    """Finds the image encoder in a checkpoint.

    Args:
        content: as `read_file` returns it.
        path: the file, for errors.

    Raises:
        UserError: if there is no tensor, or there are several encoders and no rule says which is the right one.
    """
    tensors = _tensors(content, path)
    full_names: dict[str, str] = {}
    for name in tensors:
        if (other := full_names.setdefault(_unwrapped(name), name)) != name:
            raise UserError(
                f"{path}: has '{other}' and '{name}', which is one tensor twice; a file with the one that is meant "
                "would be right."
            )
    prefix, known_by = _place(full_names, path)
    place = prefix + known_by
    inside = {full: name.removeprefix(prefix) for name, full in full_names.items() if name.startswith(place)}
    # The decoder of MAE is no module of its own.
    is_autoencoder = f"{place}decoder_pred.weight" in full_names
    decoder = {name for name, key in inside.items() if is_autoencoder and key.startswith("decoder_")}
    outside = [name for name in tensors if name not in inside]
    left_out = {name for name in outside if not BESIDE.isdisjoint(name.split("."))}
    return Encoder(
        {key: tensors[name] for name, key in inside.items() if name not in decoder},
        {key: name for name, key in inside.items() if name not in decoder},
        tuple(name for name in outside if name not in left_out),
        tuple(sorted(left_out | decoder)),
    )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _tensors(content: Mapping[Any, object], path: Path) -> dict[str, torch.Tensor]:
    """The tensors beside which an anchor lies, in `content` or an entry of it, however deep."""
    holders = _holders(content)
    if not holders:
        shown = ", ".join(repr(name)[:100] for name in list(content)[:5])
        raise UserError(
            f"{path}: holds no tensors by name, but {shown or 'nothing'}; a state dict, or one under 'state_dict' or "
            "'model', would be right."
        )
    anchored = {place: tensors for place, tensors in holders.items() if _anchors(tensors)}
    most = max(len(tensors) for tensors in holders.values())
    # Without an anchor a layout that only timm's remapping may know: the state of an optimiser has few in each entry.
    found = anchored or {place: tensors for place, tensors in holders.items() if len(tensors) == most}
    best = min(map(_rank, found))
    first = [place for place in found if _rank(place) == best]
    if len(first) > 1:
        raise _several(path, (".".join(place) + "." for place in first))
    return found[first[0]]


def _rank(place: tuple[str, ...]) -> list[int]:
    """Where an entry stands in `ENCODERS`, name by name; all that lies in one of another name is last, and alike."""
    known = list(takewhile(ENCODERS.__contains__, place))
    return [*map(ENCODERS.index, known), *([len(ENCODERS)] if len(known) < len(place) else [])]


def _holders(content: Mapping[Any, object]) -> dict[tuple[str, ...], dict[str, torch.Tensor]]:
    """Of all entries of `content`, at any depth, those with tensors, by the names that lead to them."""
    found: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    seen: set[int] = set()  # an entry can hold itself
    to_see: list[tuple[tuple[str, ...], Mapping[Any, object]]] = [((), content)]
    while to_see:
        place, entry = to_see.pop()
        if id(entry) not in seen:
            seen.add(id(entry))
            tensors = {str(name): value.detach() for name, value in entry.items() if isinstance(value, torch.Tensor)}
            if tensors:
                found[place] = tensors
            for name, inner in entry.items():
                if isinstance(inner, Mapping):
                    to_see.append(((*place, str(name)), cast(Mapping[Any, object], inner)))
    return found


def _anchors(names: Iterable[str]) -> set[tuple[str, str]]:
    """For each anchor among `names` what stands before it, and the part that timm's remapping needs."""
    return {
        (name.removesuffix(anchor), known_by)
        for name in names
        for anchor, known_by in ANCHORS.items()
        if name == anchor or name.endswith("." + anchor)
    }


def _place(names: Collection[str], path: Path) -> tuple[str, str]:
    """The prefix of the encoder's names: wrappers to take off, and the part that timm's remapping needs."""
    found = _anchors(names)
    if not found:
        return "", ""  # a layout that only timm's remapping may know
    if len(found) == 1:
        return found.pop()
    for part in ("", *ENCODERS):
        chosen = [place for place in found if part in place[0].split(".") and (part or not place[0])]
        if len(chosen) == 1:
            return chosen[0]
    raise _several(path, (prefix for prefix, _ in found))


def _several(path: Path, prefixes: Iterable[str]) -> UserError:
    shown = ", ".join(f"'{prefix}*'" for prefix in sorted(prefixes))
    return UserError(
        f"{path}: holds several image encoders ({shown}); a file with the one that is meant would be right."
    )
