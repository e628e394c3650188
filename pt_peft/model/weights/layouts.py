"""Other projects' checkpoints: finds the image encoder among training states, momentum copies, heads and text towers.

This module finds the encoder and takes wrappers off; timm's own remapping then renames its tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from pt_peft.errors import UserError

CONTAINERS = (
    *("state_dict_ema", "model_ema", "teacher", "state_dict", "model"),
    *("model_state_dict", "encoder", "student", "module"),
)
"""Entries of a training checkpoint that hold a model, the averaged ones first, as their authors evaluate them: EMA of
timm, the teacher of DINO, then MAE and DINOv2 (``model``), MoCo v3 and open_clip (``state_dict``), I-JEPA
(``encoder``)."""

ANCHORS = {"patch_embed.proj.weight": "", "visual.conv1.weight": "visual."}
"""A tensor that every image encoder has, and the part of its name by which timm's remapping knows the layout: timm's
own and all that follow it (MAE, DINO, MoCo v3, the timm towers of open_clip and BiomedCLIP), and OpenAI's CLIP."""

ENCODERS = ("teacher", "base_encoder", "encoder_q", "student")
"""Where there are several encoders, the one that their authors evaluate."""

_HEADS = {"head", "head_dist", "fc", "dino_head", "ibot_head", "projector", "predictor"}  # of DINO, iBOT, MoCo v3
_COPIES = {"momentum_encoder", "encoder_k", "student", "queue", "queue_ptr"}  # of MoCo v3 and DINO
_TEXT = {"text", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "attn_mask"}
_NUMBERS = {"logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size"}  # of CLIP, as is the text
BESIDE = frozenset(_HEADS | _COPIES | _TEXT | _NUMBERS)
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
    prefix, known_by = _place(tensors, path)
    place = prefix + known_by
    inside = {name: name.removeprefix(prefix) for name in tensors if name.startswith(place)}
    # The decoder of MAE is no module of its own.
    is_autoencoder = f"{place}decoder_pred.weight" in tensors
    decoder = {name for name, key in inside.items() if is_autoencoder and key.startswith("decoder_")}
    outside = [name for name in tensors if name not in inside]
    left_out = {name for name in outside if not BESIDE.isdisjoint(name.split("."))}
    return Encoder(
        {key: tensors[name] for name, key in inside.items() if name not in decoder},
        {key: name for name, key in inside.items() if name not in decoder},
        tuple(name for name in outside if name not in left_out),
        tuple(sorted(left_out | decoder)),
    )


def _tensors(content: Mapping[Any, object], path: Path) -> dict[str, torch.Tensor]:
    for _ in CONTAINERS:  # not for ever: a container can hold itself
        inner = (content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping))
        content = cast(Mapping[Any, object], next(inner, content))
    tensors: dict[Any, torch.Tensor] = {
        name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)
    }
    if not tensors:
        shown = ", ".join(repr(name)[:100] for name in list(content)[:5])
        raise UserError(
            f"{path}: holds no tensors by name, but {shown or 'nothing'}; a state dict, or one under 'state_dict' or "
            "'model', would be right."
        )
    return {str(name): value for name, value in tensors.items()}


def _place(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[str, str]:
    """The prefix of all names of the encoder: wrappers to take off, and the part that timm's remapping needs."""
    found = {
        (name.removesuffix(anchor), known_by)
        for name in tensors
        for anchor, known_by in ANCHORS.items()
        if name == anchor or name.endswith("." + anchor)
    }
    if not found:
        return "", ""  # a layout that only timm's remapping may know
    if len(found) == 1:
        return found.pop()
    for part in ("", *ENCODERS):
        chosen = [place for place in found if part in place[0].split(".") and (part or not place[0])]
        if len(chosen) == 1:
            return chosen[0]
    shown = ", ".join(f"'{prefix}*'" for prefix, _ in sorted(found))
    raise UserError(
        f"{path}: holds several image encoders ({shown}); a file with the one that is meant would be right."
    )
