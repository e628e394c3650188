"""timm's own folder: the adapters are merged into the weights, and no trace of a method is left."""

import json
from pathlib import Path
from typing import Any

import timm.models
from safetensors.torch import load_file, save_file
from torch import nn

from pt_peft.experiment.sections import Fit
from pt_peft.export.adapter import HEADER, Description, load_merged, open_adapter, read_preprocessing
from pt_peft.model.backbone import create_backbone

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CROP_MODES: dict[Fit, str] = {"pad": "border", "crop": "center", "squash": "squash"}
"""timm's words for ``data.fit``. Its ``border`` fills with the mean colour too."""


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes a folder that ``timm.create_model("local-dir:…", pretrained=True)`` loads.

    An ``mlp_layer`` in ``backbone.kwargs`` is a class to timm: who loads the folder gives it to ``create_model`` too.

    Args:
        adapter: the adapter file.
        weights: the backbone's file; None takes the embedded one.
        out: the folder.

    Raises:
        UserError: if the method cannot be merged.
    """
    model, spec, header = open_adapter(adapter, weights)
    model.merge()
    backbone, preprocessing = spec.backbone, read_preprocessing(header, spec, adapter)
    decoding = preprocessing.decoding
    plain = create_backbone(backbone, len(spec.classes), None)
    plain.load_state_dict(model.module.state_dict())
    timm.models.save_for_hf(  # pyright: ignore[reportUnknownMemberType]  # one of its types is bare
        plain,
        str(out),
        model_config={"label_names": list(spec.classes)},
        model_args={"img_size": backbone.image_size, **backbone.kwargs},
        safe_serialization=True,
        data_config={
            "input_size": (3, decoding.image_size, decoding.image_size),
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": decoding.interpolation,
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[decoding.fit],
        },
    )
    config: dict[str, Any] = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    for published in ("tag", "license", "paper_ids", "origin_url"):  # of timm's own weights of this name
        config["pretrained_cfg"].pop(published, None)
    config["model_args"].pop("num_classes", None)  # which stands above, and transformers takes once
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(plain.state_dict(), out / WEIGHTS, metadata={"format": "pt"})  # which timm leaves out
    (out / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[nn.Module, Description]:
    """Loads a folder that `write` wrote, see `load_merged`. Raises UserError."""
    return load_merged(path, Path(WEIGHTS), load_file)
