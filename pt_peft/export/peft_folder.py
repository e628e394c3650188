"""HF PEFT's folder, which `peft.PeftModel.from_pretrained` loads on a plain timm model."""

import json
from pathlib import Path

import peft
import timm
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from pt_peft.errors import UserError
from pt_peft.experiment.sections import ModelSpec
from pt_peft.export.adapter import backbone_file, open_adapter, read_spec
from pt_peft.model.adapted_model import AdaptedModel, Part, build_model, canonical_parameters
from pt_peft.model.backbone import create_backbone, head_name
from pt_peft.schema import read_json

HEADER = "pt_peft.json"
WEIGHTS = "adapter_model.safetensors"


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes the folder `out`: adapter, head and our header.

    Raises:
        UserError: if the method is not a single tuner of HF peft.
    """
    model, spec, header = open_adapter(adapter, weights)
    part = _the_tuner(model)
    if part.keys & model.exchange(0).computed:
        raise UserError("--format peft: HF peft has no place for the residual of its LoRA ('timm' merges it).")
    config = part.method.peft_config(create_backbone(spec.backbone, len(spec.classes), None), part.config)
    tensors = _whole_layers(model, config)
    config.modules_to_save = [head_name(model.module)]
    theirs = peft.get_peft_model(_plain(spec, backbone_file(spec.backbone, weights)), config)
    found = canonical_parameters(theirs.get_base_model())
    with torch.no_grad():
        for key, value in tensors.items():
            found[key].copy_(value)
        head = theirs.get_base_model().get_classifier().modules_to_save["default"]
        head.load_state_dict(model.module.get_classifier().state_dict())
    theirs.save_pretrained(out)
    (out / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def load(path: Path, weights: Path | None) -> tuple[nn.Module, ModelSpec]:
    """The model of a folder that `write` wrote, of normalised images. Raises UserError."""
    spec = read_spec(read_json(path / HEADER), path / HEADER)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path}: has no {WEIGHTS}.")  # peft would look for a pickle
    plain = _plain(spec, backbone_file(spec.backbone, weights))
    try:
        model = peft.PeftModel.from_pretrained(plain, path)
        there = set(load_file(path / WEIGHTS))
    except Exception as error:  # of peft, safetensors, re …
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{path}: cannot be loaded by peft ({reason}).") from None
    # peft only warns of tensors that are missing or left over.
    wanted = set(peft.get_peft_model_state_dict(model))
    layers = {name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    intended = _the_tuner(build_model(spec, None))
    paths = intended.method.peft_config(
        create_backbone(spec.backbone, len(spec.classes), None), intended.config
    ).target_modules
    if there != wanted or {name.removeprefix("base_model.model.") for name in layers} != set(paths):
        odd = sorted(there ^ wanted) or sorted({name.removeprefix("base_model.model.") for name in layers} ^ set(paths))
        raise UserError(
            f"{path}: {WEIGHTS} and adapter_config.json are not of one adapter ({odd[0]} is missing or left over)."
        )
    return model, spec


def _the_tuner(model: AdaptedModel) -> Part:
    parts = [part for part in model.parts if part.keys]
    for part in parts:
        if part.method.peft_config is None:
            raise UserError(
                f"--format peft: method '{part.method.name}' is no tuner of HF peft; 'adapter' and 'onnx' take every method, "
                "'timm' those that can be merged."
            )
    if len(parts) != 1:
        names = ", ".join(part.method.name for part in parts) or "none"
        raise UserError(f"--format peft: one tuner of HF peft is needed, but the adapter has {names}.")
    return parts[0]


def _plain(spec: ModelSpec, weights: Path) -> nn.Module:
    """The timm model as its users make it, without `create_backbone`'s changes."""
    backbone = spec.backbone
    plain = timm.create_model(
        backbone.name, num_classes=len(spec.classes), img_size=backbone.image_size, **backbone.kwargs
    )
    plain.load_state_dict(create_backbone(backbone, len(spec.classes), weights).state_dict())
    return plain


def _whole_layers(model: AdaptedModel, config: peft.PeftConfig) -> dict[str, torch.Tensor]:
    """The adapter's tensors by canonical key; where parts of a fused projection have LoRA of their own, as one LoRA of the
    whole of it: A stacked, B block by block, rank and alpha in the config's patterns.

    Raises:
        UserError: if another tuner's parts would have to be put together.
    """
    part = _the_tuner(model)
    tensors = {key: model.trained[key].detach() for key in part.keys}
    layers = {path: layer for path, layer in model.module.named_modules() if isinstance(layer, BaseTunerLayer)}
    split: dict[str, list[str]] = {}
    for path in layers:
        parent, _, name = path.rpartition(".")
        if name in ("q", "k", "v"):
            split.setdefault(parent, []).append(name)
    if split and not (isinstance(config, peft.LoraConfig) and not config.use_dora):
        raise UserError(
            f"--format peft: method '{part.method.name}' on {split and sorted(split)[0]} has an adapter for each of its parts, "
            "which HF peft cannot express for a fused layer."
        )
    for parent, names in split.items():
        whole = model.module.get_submodule(parent)
        width = whole.out_features // 3
        loras = [(("q", "k", "v").index(name), layers[f"{parent}.{name}"]) for name in sorted(names, key="qkv".index)]
        rank, scaling = config.r * len(loras), loras[0][1].scaling["default"]
        b = torch.zeros(whole.out_features, rank)
        for position, (row, layer) in enumerate(loras):
            rows, columns = slice(row * width, (row + 1) * width), slice(position * config.r, (position + 1) * config.r)
            b[rows, columns] = layer.lora_B["default"].weight.detach()
        for name in names:
            for side in ("lora_A", "lora_B"):
                del tensors[f"{parent}.{name}.{side}"]
        tensors[f"{parent}.lora_A"] = torch.cat([layer.lora_A["default"].weight.detach() for _, layer in loras])
        tensors[f"{parent}.lora_B"] = b
        config.rank_pattern[parent] = rank
        config.alpha_pattern[parent] = scaling * (rank**0.5 if config.use_rslora else rank)
    return tensors
