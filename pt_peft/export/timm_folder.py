"""timm's own folder: the adapters merged into the weights, no trace of a method left."""

import json
from pathlib import Path

import timm.models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pt_peft.errors import UserError
from pt_peft.experiment.sections import ModelSpec
from pt_peft.export.adapter import open_adapter, read_spec
from pt_peft.model.backbone import create_backbone
from pt_peft.schema import read_json

HEADER = "pt_peft.json"
WEIGHTS = "model.safetensors"


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes the folder `out`, which ``timm.create_model("local-dir:" + out, pretrained=True)`` loads.

    Raises:
        UserError: if the method cannot be merged.
    """
    model, spec, header = open_adapter(adapter, weights)
    model.merge()
    backbone = spec.backbone
    plain = create_backbone(backbone, len(spec.classes), None)
    plain.load_state_dict(model.module.state_dict())
    timm.models.save_for_hf(
        plain,
        str(out),
        model_config={"label_names": list(spec.classes)},
        model_args={"img_size": backbone.image_size, **backbone.kwargs},
        safe_serialization=True,
        data_config={
            "input_size": (3, backbone.image_size, backbone.image_size),
            "mean": backbone.mean,
            "std": backbone.std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    )
    (out / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[nn.Module, ModelSpec]:
    """The model of a folder that `write` wrote, of normalised images. Raises UserError."""
    spec = read_spec(read_json(path / HEADER), path / HEADER)
    model = create_backbone(spec.backbone, len(spec.classes), None)
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS}: cannot be loaded ({' '.join(str(error).split())[:300]}).") from None
    return model, spec
