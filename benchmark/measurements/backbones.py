"""Tries published backbones: loads a file as they are published, looks at its layout, and takes a step of LoRA + VPT.

    python -m benchmark.measurements.backbones --out benchmark/results/backbones.json
    python -m benchmark.measurements.backbones --published --only DINOv2 Phikon --json

Without ``--published`` nothing is fetched: a file of random weights has the names, shapes and nesting of the published
one, from timm's architecture and the arguments of the model's card, or from the class and configuration of Hugging Face
transformers. What is found is the layout, which weights do not change; not how well a backbone does. With it each file
is fetched by the name that ``site.json`` has for it, and its digest is recorded.
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch.nn import functional

from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.sections import Backbone
from pt_peft.experiment.site import HUB_PREFIX
from pt_peft.files import check_place, sha256_of
from pt_peft.model.adapted_model import AdaptedModel, build_model
from pt_peft.model.backbone import head_name, plain_model
from pt_peft.model.weights.formats import read_file
from pt_peft.model.weights.hub import fetch
from pt_peft.presets import demo
from pt_peft.training.footprint import footprint, model_refusals

METHOD = "lora_vpt"
NO_DIGEST = "0" * 64

Write = Callable[[Backbone, Path], Path]
"""Writes random weights of a backbone into a folder, as they are published, and returns the file."""


@dataclass(frozen=True)
class Published:
    """A backbone that its authors publish."""

    name: str
    hub: str
    """Its repository on the Hugging Face Hub, and the file where that has a name of its own."""
    layout: str
    """Whose names its tensors have."""
    write: Write
    architecture: str
    """timm's."""
    kwargs: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    image_size: int = 224


class Row(TypedDict):
    """What was found."""

    name: str
    site: str
    """Its name in `site.json`."""
    architecture: str
    """``backbone.name``."""
    kwargs: str
    """``backbone.kwargs``, JSON."""
    image_size: int
    layout: str
    tensors: int
    """In the file, with those that are left out."""
    sha256: str | None
    """Of the published file; null for random weights."""
    blocks: int
    width: int
    parameters: int
    """Without a head."""
    prefix_tokens: int
    """Class and register tokens, before the patches'."""
    patches: int
    qkv: str
    """``fused`` is one layer for queries, keys and values."""
    mlp: str
    """Its class in timm."""
    positions: str
    layer_scale: bool
    head: str
    """Path of the classifier in timm's model."""
    exchanged: int
    """Parameters of LoRA and prompts, with their defaults, without the head."""
    memory_bytes: int
    """As `Limits.max_memory_gb` counts them, for batches of ``batch_size``."""
    limits: str
    """What a site's default limits refuse, or ``taken``."""
    loss: list[float]
    """Cross-entropy of a batch of noise before and after one step of AdamW on it."""


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    weights: str
    """``random`` or ``published``."""
    method: str
    batch_size: int
    """Of the experiment that limits were asked about."""
    rows: list[Row]


def timm_file(backbone: Backbone, folder: Path) -> Path:
    """A state dict with timm's names."""
    path = folder / "model.safetensors"
    save_file(plain_model(backbone, num_classes=0).state_dict(), path)
    return path


def pickled(backbone: Backbone, folder: Path) -> Path:
    """The same, by `torch.save`."""
    path = folder / "pytorch_model.bin"
    torch.save(plain_model(backbone, num_classes=0).state_dict(), path)
    return path


def open_clip_file(backbone: Backbone, folder: Path) -> Path:
    """Both towers of open_clip, that of images a model of timm."""
    trunk = plain_model(backbone, num_classes=0)
    state = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.randn(512, trunk.embed_dim), "logit_scale": torch.ones(())}
    state |= {
        "text.transformer.embeddings.word_embeddings.weight": torch.randn(8, 8),
        "text.proj.0.weight": torch.ones(8),
    }
    path = folder / "open_clip_pytorch_model.bin"
    torch.save(state, path)
    return path


def mae_file(backbone: Backbone, folder: Path) -> Path:
    """What MAE's training keeps: encoder and decoder in an entry ``model``, beside its optimiser."""
    model = plain_model(backbone, num_classes=0)
    decoder = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    path = folder / "weights.pth"
    state = {**model.state_dict(), **{name: torch.ones(3) for name in (*decoder, "decoder_pred.weight")}}
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 799}, path)
    return path


def transformers_file(kind: str, **config: JsonValue) -> Write:
    """What a class of Hugging Face transformers saves.

    Args:
        kind: name of the class.
        config: of its image encoder; width, heads and blocks are those of a ViT-B unless it says otherwise.
    """

    def write(backbone: Backbone, folder: Path) -> Path:
        made: Any = getattr(importlib.import_module("transformers"), kind)
        sizes: dict[str, JsonValue] = {"image_size": backbone.image_size, "patch_size": 16, **config}
        if "depth" in backbone.kwargs:
            sizes["num_hidden_layers"] = backbone.kwargs["depth"]
        fields = {"vision_config": sizes} if kind == "CLIPModel" else sizes
        made(made.config_class(**fields)).save_pretrained(folder)
        return folder / "model.safetensors"

    return write


SWIGLU: dict[str, JsonValue] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
UNI2_H: dict[str, JsonValue] = {
    "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 5.33334, "init_values": 1e-5,
    "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **SWIGLU,
}  # fmt: skip
VIRCHOW2: dict[str, JsonValue] = {
    "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "dynamic_img_size": True, **SWIGLU,
}  # fmt: skip
VIT_B, DINOV2 = "vit_base_patch16_224", "vit_base_patch14_dinov2"
TRANSFORMERS = "transformers"
BACKBONES = (
    Published("ViT (AugReg)", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "timm", timm_file, VIT_B),
    Published("MAE", "facebook/vit-mae-base", TRANSFORMERS, transformers_file("ViTMAEForPreTraining"), VIT_B),
    Published("DINOv2", "timm/vit_base_patch14_dinov2.lvd142m", "timm", timm_file, DINOV2, image_size=518),
    Published(
        "DINOv2 with registers",
        "facebook/dinov2-with-registers-base",
        TRANSFORMERS,
        transformers_file("Dinov2WithRegistersModel", patch_size=14, num_register_tokens=4),
        "vit_base_patch14_reg4_dinov2",
        image_size=518,
    ),
    Published(
        "DINOv3", "timm/vit_base_patch16_dinov3.lvd1689m", "timm", timm_file, "vit_base_patch16_dinov3", image_size=256
    ),
    Published(
        "CLIP",
        "openai/clip-vit-base-patch16",
        TRANSFORMERS,
        transformers_file("CLIPModel", hidden_size=768, intermediate_size=3072, num_attention_heads=12),
        "vit_base_patch16_clip_quickgelu_224",
    ),
    Published(
        "BiomedCLIP",
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "open_clip",
        open_clip_file,
        VIT_B,
    ),
    Published(
        "RETFound",
        "YukunZhou/RETFound_mae_natureCFP/RETFound_mae_natureCFP.pth",
        "MAE",
        mae_file,
        "vit_large_patch16_224",
    ),
    Published("UNI2-h", "MahmoodLab/UNI2-h", "timm", pickled, "vit_giant_patch14_224", UNI2_H),
    Published("Virchow2", "paige-ai/Virchow2", "timm", timm_file, "vit_huge_patch14_224", VIRCHOW2),
    Published("Phikon", "owkin/phikon", TRANSFORMERS, transformers_file("ViTModel"), VIT_B),
    Published(
        "RAD-DINO",
        "microsoft/rad-dino",
        TRANSFORMERS,
        transformers_file("Dinov2Model", patch_size=14),
        DINOV2,
        image_size=518,
    ),
)
"""Architectures and arguments as the models' cards have them."""


def described(published: Published, sha256: str, blocks: int | None, image_size: int | None) -> Backbone:
    """The section ``backbone`` of an experiment; with fewer blocks or other images than published, if asked."""
    depth: dict[str, JsonValue] = {"depth": blocks} if blocks else {}
    return Backbone(
        name=published.architecture,
        kwargs=published.kwargs | depth,
        image_size=image_size or published.image_size,
        sha256=sha256,
    )


def tried(published: Published, backbone: Backbone, weights: Path, images: int, *, random: bool) -> Row:
    """Loads a file as a site does, and takes a step.

    Args:
        published: what it is.
        backbone: its section of an experiment.
        weights: the file.
        images: of the batch.
        random: whether its weights are.

    Raises:
        UserError: if the file does not fit, or the step changes what it must not, or nothing.
    """
    experiment = demo(METHOD)[0].model_copy(update={"backbone": backbone})
    refused = refusals(experiment, weights)
    model = build_model(experiment.model, weights)
    loss = step(model, backbone.image_size, images)
    module = model.module
    block = module.blocks[0]
    head = head_name(module)
    adapters = {key for part in model.parts for key in part.keys}
    return {
        "name": published.name,
        "site": f"{HUB_PREFIX}{published.hub}",
        "architecture": backbone.name,
        "kwargs": json.dumps(backbone.kwargs),
        "image_size": backbone.image_size,
        "layout": published.layout,
        "tensors": _tensors(read_file(weights)),
        "sha256": None if random else backbone.sha256,
        "blocks": len(module.blocks),
        "width": module.embed_dim,
        "parameters": sum(value.numel() for value in plain_on_meta(backbone).parameters()),
        "prefix_tokens": module.num_prefix_tokens,
        "patches": int(module.patch_embed.num_patches),
        "qkv": _qkv(block.attn),
        "mlp": type(block.mlp).__name__,
        "positions": _positions(module),
        "layer_scale": any(".ls1.gamma" in key or ".gamma_1" in key for key in module.state_dict()),
        "head": head,
        "exchanged": sum(model.trained[key].numel() for key in adapters),
        "memory_bytes": footprint(module, experiment, "meta").memory,
        "limits": ", ".join(refused) or "taken",
        "loss": loss,
    }


def refusals(experiment: Experiment, weights: Path) -> list[str]:
    """The fields of a site's default limits that refuse an experiment."""
    limits = Limits()
    found = [*limits.refusals(experiment), *model_refusals(experiment, limits, lambda: weights, trains=True)]
    return sorted({one.field for one in found})


def step(model: AdaptedModel, image_size: int, images: int) -> list[float]:
    """Takes one step on noise, and returns the loss before and after it. Raises UserError as `tried` does."""
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(images, 3, image_size, image_size, generator=draw)
    labels = torch.arange(images) % model.module.get_classifier().out_features
    trained = [*model.trained.values()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    before = functional.cross_entropy(model.module(batch), labels)
    before.backward()
    gradients = [one.grad for one in trained]
    if any(one is None or not one.isfinite().all() for one in gradients):
        raise UserError("a tensor that trains has no finite gradient.")
    if any(one.grad is not None for one in model.module.parameters() if not one.requires_grad):
        raise UserError("a frozen tensor has a gradient.")
    optimizer.step()
    with torch.no_grad():
        after = functional.cross_entropy(model.module(batch), labels)
    if not after < before:
        raise UserError(f"the step took the loss from {before:.3f} to {after:.3f}.")
    return [round(float(before.detach()), 4), round(float(after), 4)]


def plain_on_meta(backbone: Backbone) -> Any:
    """The model of timm without a head and without values."""
    with torch.device("meta"):
        return plain_model(backbone, num_classes=0)


def _tensors(content: object) -> int:
    if isinstance(content, Mapping):
        return sum(map(_tensors, cast(Mapping[str, object], content).values()))
    return int(isinstance(content, torch.Tensor))


def _qkv(attention: Any) -> str:
    fused = getattr(attention, "qkv", None) is not None
    layer = attention.qkv if fused else attention.q_proj
    layer = getattr(layer, "base_layer", layer)
    return ("fused" if fused else "split") + ("" if layer.bias is not None else ", no bias")


def _positions(module: Any) -> str:
    kinds = {"learned": getattr(module, "pos_embed", None), "rotary": getattr(module, "rope", None)}
    return " and ".join(kind for kind, value in kinds.items() if value is not None)


@command
def main(arguments: list[str] | None = None) -> None:
    """Tries the backbones, writes the result file and prints a table."""
    names = [one.name for one in BACKBONES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.backbones",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="those to try (default: all)")
    parser.add_argument("--published", action="store_true", help="fetch the published files")
    parser.add_argument("--blocks", type=int, help="blocks of random weights (default: as many as are published)")
    parser.add_argument("--image-size", type=int, help="pixels (default: as published)")
    parser.add_argument("--images", type=int, default=1, help="of the step's batch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    check_positive(options, "images")
    if options.published and options.blocks:
        raise UserError("--blocks: published weights have all of their blocks; leave one of the two options out.")
    if options.out:
        check_place(options.out)
    origin = provenance()
    rows: list[Row] = []
    for one in BACKBONES:
        if one.name in options.only:
            rows.append(_row(one, options))
            print(f"{one.name}: {rows[-1]['limits']}, loss {rows[-1]['loss']}", file=sys.stderr, flush=True)
    result: Result = {
        "provenance": origin,
        "weights": "published" if options.published else "random",
        "method": METHOD,
        "batch_size": demo(METHOD)[0].training.batch_size,
        "rows": rows,
    }
    finish(options, result, table(rows))


def _row(published: Published, options: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        if options.published:
            weights = fetch(f"{HUB_PREFIX}{published.hub}")
        else:
            random = described(published, NO_DIGEST, options.blocks, options.image_size)
            weights = published.write(random, Path(folder))
        backbone = described(published, sha256_of(weights), options.blocks, options.image_size)
        return tried(published, backbone, weights, options.images, random=not options.published)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    header = ["backbone", "architecture", "blocks", "prefix tokens", "qkv", "positions", "default limits"]
    lines = [
        [one["name"], one["architecture"], str(one["blocks"]), str(one["prefix_tokens"]), one["qkv"], one["positions"],
         one["limits"]]
        for one in rows
    ]  # fmt: skip
    return markdown_table(header, lines, 2)


if __name__ == "__main__":
    sys.exit(main())
