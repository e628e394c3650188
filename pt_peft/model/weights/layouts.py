"""Checkpoints of others: where among training states, momentum copies, heads and text towers the image encoder is.

What is done here is to find the encoder and to take wrappers off; its tensors are renamed by timm's own remapping after.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pt_peft.errors import UserError

CONTAINERS = (
    *("state_dict_ema", "model_ema", "teacher", "state_dict", "model"),
    *("model_state_dict", "encoder", "student", "module"),
)
"""Entries of a training checkpoint that hold a model, the averaged ones first, as their authors evaluate them: EMA of timm,
the teacher of DINO, then MAE and DINOv2 (``model``), MoCo v3 and open_clip (``state_dict``), I-JEPA (``encoder``)."""

ANCHORS = {"patch_embed.proj.weight": "", "visual.conv1.weight": "visual."}
"""A tensor that every image encoder has, and the part of its name by which timm's remapping knows the layout: timm's own and
all that follow it (MAE, DINO, MoCo v3, the timm towers of open_clip and BiomedCLIP), and OpenAI's CLIP."""

ENCODERS = ("teacher", "base_encoder", "encoder_q", "student")
"""Of several encoders side by side, the one that their authors evaluate."""

BESIDE = frozenset(
    ("head", "head_dist", "fc", "dino_head", "ibot_head", "projector", "predictor")  # heads of DINO, iBOT, MoCo v3
    + ("momentum_encoder", "encoder_k", "student", "queue", "queue_ptr")  # the other encoder of MoCo v3 and DINO
    + (
        "text",
        "transformer",
        "token_embedding",
        "positional_embedding",
        "ln_final",
        "text_projection",
        "attn_mask",
    )  # CLIP's
    + ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
)
"""Parts of names beside the encoder that belong to no encoder of images."""


@dataclass(frozen=True)
class Encoder:
    """The image encoder of a checkpoint."""

    tensors: dict[str, torch.Tensor]
    """Under the names that timm's remapping takes."""
    names: dict[str, str]
    """The full name in the file of each of them."""
    left_over: tuple[str, ...]
    """Full names of tensors beside the encoder that are part of no layout known here."""
    left_out: tuple[str, ...]
    """Full names of heads, decoders, text towers and copies."""


def find_encoder(content: Mapping, path: Path) -> Encoder:
    """The image encoder in `content`, as `read_file` gives it.

    Args:
        path: the file, for errors.

    Raises:
        UserError: if there is no tensor, or several encoders and none that is known to be the right one.
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


def _tensors(content: Mapping, path: Path) -> dict[str, torch.Tensor]:
    for _ in CONTAINERS:  # not for ever: a container can hold itself
        content = next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        shown = ", ".join(repr(name)[:100] for name in list(content)[:5])
        raise UserError(
            f"{path}: holds no tensors by name, but {shown or 'nothing'}; a state dict, or one under 'state_dict' or "
            "'model', would be right."
        )
    return {str(name): value for name, value in tensors.items()}


def _place(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[str, str]:
    """What all names of the encoder begin with: wrappers to take off, and what timm's remapping wants to see."""
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
