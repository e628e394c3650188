"""Checkpoints of Hugging Face transformers: its names of an image encoder's tensors, as timm's.

ViT and all that share its classes (DINO, MAE, MSN, DeiT), BEiT, DINOv2 with and without registers, and the image towers
of CLIP, SigLIP and SigLIP 2. Since transformers 5 its models have other names than its files; both are known.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping

import torch

PATCHES = ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embedding.weight")
"""The patch embedding, of ViT and its kin, and of CLIP and SigLIP."""

Renamed = dict[str, tuple[torch.Tensor, tuple[str, ...]]]
"""By timm's key a tensor, and the names of those that it was made of."""

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",
    "layernorm": "norm",
    "post_layernorm": "norm",
    "pooler.layernorm": "fc_norm",
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
_BIASES = "relative_position_bias.relative_position_bias_table"
_IN_A_BLOCK = {
    **dict.fromkeys(("layernorm_before", "norm1", "layer_norm1"), "norm1"),
    **dict.fromkeys(("layernorm_after", "norm2", "layer_norm2"), "norm2"),
    **dict.fromkeys(("attention.output.dense", "attention.o_proj", "self_attn.out_proj"), "attn.proj"),
    **dict.fromkeys(("intermediate.dense", "mlp.fc1", "mlp.weights_in"), "mlp.fc1"),
    **dict.fromkeys(("output.dense", "mlp.fc2", "mlp.weights_out", "mlp.down_proj"), "mlp.fc2"),
    **{f"layer_scale{number}.lambda1": f"ls{number}.gamma" for number in (1, 2)},
    **{f"lambda_{number}": f"gamma_{number}" for number in (1, 2)},
    **{f"{inner}{_BIASES}": "attn.relative_position_bias_table" for inner in ("", "attention.attention.")},
}
_PARTS = {
    **{f"attention.attention.{name}": ("attn.qkv", name[0]) for name in ("query", "key", "value")},
    **{f"{layer}.{part}_proj": ("attn.qkv", part) for layer in ("attention", "self_attn") for part in "qkv"},
    **{f"mlp.{part}_proj": ("mlp.fc1", part) for part in ("gate", "up")},
}
_WHOLE = {"attn.qkv": ("q", "k", "v"), "mlp.fc1": ("gate", "up")}
"""Fused layers of timm's, and their parts along the outputs."""
_BLOCK = re.compile(r"(?:encoder\.)?layers?\.(?P<block>\d+)\.(?P<layer>.+?)(?P<kind>\.weight|\.bias|)")


def as_timm(tensors: Mapping[str, torch.Tensor]) -> Renamed:
    """Renames an encoder's tensors, joins and splits them. One that is not known keeps its name.

    Args:
        tensors: an image encoder of transformers, without the prefix of a larger model.

    Raises:
        RuntimeError: if tensors that belong together have shapes that do not.
    """
    renamed: Renamed = {}
    parts: defaultdict[tuple[str, str, str], Renamed] = defaultdict(dict)
    for name, value in tensors.items():
        found = _BLOCK.fullmatch(name)
        if found and found["layer"] in _PARTS:
            layer, part = _PARTS[found["layer"]]
            parts[f"blocks.{found['block']}.", layer, found["kind"]][part] = (value, (name,))
        else:
            renamed[_key(name, found)] = (value, (name,))
    for (block, layer, kind), those in parts.items():
        renamed |= _joined(block, layer, kind, those)
    _reshape(renamed)
    return renamed


def _key(name: str, found: re.Match[str] | None) -> str:
    if found:
        layer = _IN_A_BLOCK.get(found["layer"])
        return f"blocks.{found['block']}.{layer}{found['kind']}" if layer else name
    layer, dot, kind = name.rpartition(".")
    return _OUTSIDE.get(name) or (_OUTSIDE[layer] + dot + kind if layer in _OUTSIDE else name)


def _joined(block: str, layer: str, kind: str, parts: Renamed) -> Renamed:
    whole = _WHOLE[layer]
    if set(parts) == set(whole):
        values, names = zip(*(parts[part] for part in whole), strict=True)
        if len(shapes := {tuple(value.shape) for value in values}) > 1:  # whose sum may be right
            raise RuntimeError(f"{sum(names, ())} have the shapes {sorted(shapes)}, which should be one")
        return {f"{block}{layer}{kind}": (torch.cat(values), sum(names, ()))}
    if kind == ".bias" and set(parts) == {"q", "v"}:  # BEiT's keys have none
        return {f"{block}attn.{part}_bias": those for part, those in parts.items()}
    return {names[0]: (value, names) for value, names in parts.values()}


def _reshape(renamed: Renamed) -> None:
    """Gives tokens, positions, SigLIP's pooling and flat patches the shapes that timm has them in."""
    patches, names = renamed.get("patch_embed.proj.weight", (torch.empty(0), ()))
    if patches.dim() == 2:  # SigLIP 2 with NaFlex: a patch is a row of pixels, each with its colours
        side = math.isqrt(patches.shape[1] // 3)
        renamed["patch_embed.proj.weight"] = (patches.reshape(-1, side, side, 3).permute(0, 3, 1, 2), names)
    if "cls_token" in renamed:  # CLIP's is a vector
        value, names = renamed["cls_token"]
        renamed["cls_token"] = (value.reshape(1, 1, -1), names)
    if "pos_embed" in renamed:  # CLIP's and SigLIP's are a table
        value, names = renamed["pos_embed"]
        renamed["pos_embed"] = (value if value.dim() == 3 else value[None], names)
    if renamed.keys() >= {"reg_token", "cls_token", "pos_embed"}:
        # The position of DINOv2's class token is added to it, as timm does: the registers have none.
        (token, names), (positions, of_positions) = renamed["cls_token"], renamed["pos_embed"]
        renamed["cls_token"] = (token + positions[:, :1], names + of_positions)
        renamed["pos_embed"] = (positions[:, 1:], of_positions)
    for kind in ("weight", "bias"):
        if (fused := f"head.attention.in_proj_{kind}") in renamed:
            value, names = renamed.pop(fused)
            width = len(value) // 3
            renamed[f"attn_pool.q.{kind}"] = (value[:width], names)
            renamed[f"attn_pool.kv.{kind}"] = (value[width:], names)
