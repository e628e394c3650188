"""HF PEFT's folder, which `peft.PeftModel.from_pretrained` loads on a plain timm model."""

import json
from pathlib import Path
from typing import cast

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from pt_peft.errors import UserError
from pt_peft.experiment.sections import ModelSpec
from pt_peft.export.adapter import HEADER, Description, backbone_file, open_adapter, read_description
from pt_peft.model.adapted_model import AdaptedModel, Part, build_model, canonical_parameters
from pt_peft.model.backbone import create_backbone, head_name, plain_model
from pt_peft.model.hf_peft import QKV
from pt_peft.model.library_internals import without_boft_extension
from pt_peft.model.vit import Layer, ViT
from pt_peft.schema import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes a folder with adapter, head, and the adapter file's header.

    Args:
        adapter: the adapter file.
        weights: the backbone's file; None takes the embedded one.
        out: the folder.

    Raises:
        UserError: if the method is not a single tuner of HF PEFT.
    """
    model, spec, header = open_adapter(adapter, weights)
    part, config = _the_tuner(model, spec)
    if part.keys & model.exchange(0).computed:
        raise UserError("--format peft: HF peft has no place for the residual of its LoRA ('timm' merges it).")
    tensors = _whole_layers(model, part, config)
    vars(config)["modules_to_save"] = [head_name(model.module)]  # which every tuner's config has, but not their base
    with without_boft_extension():
        theirs = peft.get_peft_model(_plain(spec, backbone_file(spec.backbone, weights)), config)
    base = cast(ViT, theirs.get_base_model())
    found = canonical_parameters(base)
    with torch.no_grad():
        for key, value in tensors.items():
            found[key].copy_(value)
    saved_head = base.get_submodule(f"{head_name(model.module)}.modules_to_save.default")
    saved_head.load_state_dict(model.module.get_classifier().state_dict())
    theirs.save_pretrained(str(out))
    (out / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def name_base(path: Path, base_model: str) -> None:
    """Names the published model that the folder `path` goes with, by its id on the Hugging Face Hub."""
    file = path / CONFIG
    config = cast(dict[str, object], read_json(file)) | {"base_model_name_or_path": base_model}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(path: Path, weights: Path | None) -> tuple[nn.Module, Description]:
    """Loads a folder that `write` wrote.

    Args:
        path: the folder.
        weights: the backbone's file; None takes the embedded one.

    Returns:
        The model of normalised images, and its description.

    Raises:
        UserError: if the folder is not one of `write`, is damaged, or the backbone is another.
    """
    header = read_json(path / HEADER)
    described = read_description(header, path / HEADER)
    spec = described.spec
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path}: has no {WEIGHTS}.")  # peft would look for a pickle
    plain = _plain(spec, backbone_file(spec.backbone, weights))
    try:
        with without_boft_extension():
            model = peft.PeftModel.from_pretrained(plain, path)  # pyright: ignore[reportUnknownMemberType]  # **kwargs
        in_file = set(load_file(path / WEIGHTS))
    except Exception as error:  # peft, safetensors, re and others raise many
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{path}: cannot be loaded by peft ({reason}).") from None
    # peft only warns of tensors that are missing or left over. By itself it would look for the base model on the Hub.
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)  # pyright: ignore[reportUnknownMemberType]  # its parameters are bare
    layers = {
        name.removeprefix("base_model.model.")
        for name, layer in cast(Layer, model).named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    _, intended = _the_tuner(build_model(spec, None), spec)
    if odd := sorted(in_file ^ set(state)) or sorted(layers ^ set(vars(intended)["target_modules"])):
        raise UserError(
            f"{path}: {WEIGHTS} and adapter_config.json are not of one adapter ({odd[0]} is missing or left over)."
        )
    return model, described


def _the_tuner(model: AdaptedModel, spec: ModelSpec) -> tuple[Part, peft.PeftConfig]:
    """The single tuner of `model`, and its config on a plain timm model. Raises UserError if there is not just one."""
    parts = [part for part in model.parts if part.keys]
    configs: list[peft.PeftConfig] = []
    for part in parts:
        if part.method.peft_config is None:
            raise UserError(
                f"--format peft: method '{part.method.name}' is no tuner of HF peft; 'adapter' and 'onnx' take every "
                "method, 'timm' those that can be merged."
            )
        configs.append(part.method.peft_config(create_backbone(spec.backbone, len(spec.classes), None), part.config))
    if len(parts) != 1:
        names = ", ".join(part.method.name for part in parts) or "none"
        raise UserError(f"--format peft: one tuner of HF peft is needed, but the adapter has {names}.")
    return parts[0], configs[0]


def _plain(spec: ModelSpec, weights: Path) -> nn.Module:
    """The timm model as its users make it, without `create_backbone`'s changes."""
    plain = plain_model(spec.backbone, len(spec.classes))
    plain.load_state_dict(create_backbone(spec.backbone, len(spec.classes), weights).state_dict())
    return plain


def _whole_layers(model: AdaptedModel, part: Part, config: peft.PeftConfig) -> dict[str, torch.Tensor]:
    """The adapter's tensors by canonical key, with one LoRA for all parts of a fused projection.

    Of the parts' LoRAs, A is stacked and B put together block by block; `config` gets rank and alpha of the whole.

    Raises:
        UserError: if another tuner's parts would have to be put together.
    """
    tensors: dict[str, torch.Tensor] = {key: model.trained[key].detach() for key in part.keys}
    fused: dict[str, dict[str, Layer]] = {}
    for path, layer in model.module.named_modules():
        parent, _, name = path.rpartition(".")
        if isinstance(layer, BaseTunerLayer) and name in QKV:
            fused.setdefault(parent, {})[name] = layer
    if not fused:
        return tensors
    if not isinstance(config, peft.LoraConfig) or config.use_dora:
        raise UserError(
            f"--format peft: method '{part.method.name}' on {min(fused)} has an adapter for each of its parts, which "
            "HF peft cannot express for a fused layer."
        )
    for parent, parts in fused.items():
        for name in parts:
            for side in ("lora_A", "lora_B"):
                del tensors[f"{parent}.{name}.{side}"]
        tensors[f"{parent}.lora_A"] = torch.cat([one.lora_A["default"].weight.detach() for one in parts.values()])
        tensors[f"{parent}.lora_B"] = _blocks_of_b(parts)
        rank, scaling = config.r * len(parts), next(iter(parts.values())).scaling["default"]
        vars(config)["rank_pattern"][parent] = rank  # HF PEFT declares no types of keys and values
        vars(config)["alpha_pattern"][parent] = scaling * (rank**0.5 if config.use_rslora else rank)
    return tensors


def _blocks_of_b(parts: dict[str, Layer]) -> torch.Tensor:
    """B of the whole projection, (3 d_out, parts · r): each part's B (d_out, r) in rows and columns of its own."""
    blocks: dict[str, torch.Tensor] = {name: layer.lora_B["default"].weight.detach() for name, layer in parts.items()}
    rows = [
        torch.cat([block if name == row else torch.zeros_like(block) for name, block in blocks.items()], dim=1)
        for row in QKV
    ]
    return torch.cat(rows)
