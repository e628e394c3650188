"""MONAI's bundle: a timm network with the adapters merged into its weights, and all steps around it as MONAI's config.

Nothing of this project is needed to run it. Where MONAI has no transform that does what a site's images went through
(turning by EXIF, resizing on 8 bits with antialiasing), the config has an expression of one line.
"""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pt_peft import __version__
from pt_peft.environment import versions
from pt_peft.errors import UserError
from pt_peft.experiment.preprocessing import Decoding, Preprocessing
from pt_peft.experiment.sections import Fit, Intensity, ModelSpec, Task
from pt_peft.export.adapter import HEADER, Description, load_merged, open_adapter, read_preprocessing
from pt_peft.export.model_card import plain, table
from pt_peft.model.adapter_file import Header
from pt_peft.model.model_input import FLIPS

WEIGHTS = Path("models", "model.pt")
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""MONAI's JSON schema of ``metadata.json``."""
IGNITE = "0.4.11"
"""Of PyTorch-Ignite, the least that MONAI's evaluator takes."""
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
"""Ends of the names of the files that ``run`` takes from ``dataset_dir``."""
Config = dict[str, Any]
"""What `monai.bundle.ConfigParser` reads."""

_EIGHT_BITS: dict[Intensity, str] = {
    # The cast raises for 32 bits, whose range is not known.
    "type": "(np.asarray(image).astype(np.uint16, casting='safe') >> 8).astype(np.uint8)",
    "image": (
        "(lambda v, low, high: ((v - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8))"
        "(np.asarray(image), float(np.min(image)), float(np.max(image)))"
    ),
}
"""An array of more than 8 bits as uint8, by ``data.intensity``; as `pt_peft.data.transforms.to_rgb`."""
_SIDES: dict[Fit, str] = {
    "pad": "[max(1, round(n * {size} / max(x.shape[1:]))) for n in x.shape[1:]]",
    "crop": "[max({size}, round(n * {size} / min(x.shape[1:]))) for n in x.shape[1:]]",
    "squash": "[{size}, {size}]",
}
"""Height and width to which an image is resized, by ``data.fit``; as `pt_peft.data.transforms.ToSquare`."""
_ACTIVATION: dict[Task, str] = {"multiclass": "softmax", "ordinal": "softmax", "multilabel": "sigmoid"}

LICENCE = """\
The configuration files of this bundle were written by pt-peft and may be used under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

models/model.pt holds weights that come from a published backbone and from the sites' training. Under which licence they
may be used is for these to say; README.md has what was told when the bundle was written.
"""

README = """\
# A classifier of images as a MONAI bundle

`../README.md` is the model card: what the model is for, how well it does at each site, and what it was made of.

```bash
pip install "monai[ignite,fire,jsonschema]" timm pillow
```

has what it needs. In this folder

```bash
python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
    --bundle_root . --dataset_dir FOLDER_OF_IMAGES --output_dir eval
```

writes `eval/predictions.csv`, a row for each image: its file, and the probability ({activation}) of each class in this
order:

{classes}

## Images

Files that end in .png, .jpg, .jpeg, .bmp, .tif or .tiff, of 8 or 16 bits, grey, with a palette or in colour, turned or
not (EXIF), come to the network as those of the sites did in training. In code, `preprocessing` of
`configs/inference.json` does it, with `LoadImaged` first: what MONAI reads otherwise has rows and columns exchanged.

What the sites' own reader does and this bundle does not:

* DICOM: rescale, window and inversion. Save such images as PNG, as the viewer shows them.
* Files of several frames or pages are refused there. Here the first one is taken.
* Grey TIFF of 16 bits in which 0 is white, and PPM of 16 bits, are turned and scaled there. Save them as PNG.
* A PNG whose check sum is wrong is refused there.

In float32 on a CPU the probabilities are those of the sites' own evaluation up to rounding; on a GPU, PyTorch's
settings of precision (TF32) are added to that.
"""


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes a folder that ``monai.bundle`` runs; its model card is written by `pt_peft.export.formats`.

    Args:
        adapter: the adapter file.
        weights: the backbone's file; None takes the embedded one.
        out: the folder.

    Raises:
        UserError: if the method cannot be merged, or a text would mean something else in MONAI's configs.
    """
    model, spec, header = open_adapter(adapter, weights)
    model.merge()
    preprocessing = read_preprocessing(header, spec, adapter)
    configs = {"inference.json": inference(spec, preprocessing), "metadata.json": metadata(header, spec, preprocessing)}
    for folder in ("configs", "models", "docs"):
        (out / folder).mkdir(parents=True)
    for name, content in configs.items():
        (out / "configs" / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors = {key: value.detach().clone() for key, value in model.module.state_dict().items()}
    content = io.BytesIO()  # torch's own writer raises no OSError where the disk is full
    torch.save(tensors, content)  # of a view it would save all that it is a view of
    (out / WEIGHTS).write_bytes(content.getbuffer())
    (out / "docs" / "README.md").write_text(_readme(spec), encoding="utf-8")
    (out / "LICENSE").write_text(LICENCE, encoding="utf-8")
    (out / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[nn.Module, Description]:
    """Loads a folder that `write` wrote, see `load_merged`. Its configs, which are code to MONAI, are not read.

    Raises:
        UserError: if the folder is not one of `write`, or is damaged.
    """
    return load_merged(path, WEIGHTS, partial(torch.load, weights_only=True))


def inference(spec: ModelSpec, preprocessing: Preprocessing) -> Config:
    """The content of ``configs/inference.json``: each image of ``dataset_dir`` to a row of probabilities.

    Raises:
        UserError: if an argument of the backbone's would mean something else in MONAI's configs.
    """
    kwargs = {name: value for name, value in spec.backbone.kwargs.items() if name != "dynamic_img_size"}
    _check_plain(kwargs, "backbone.kwargs")
    if "mlp_layer" in kwargs:  # timm knows activations by name, MLPs by class
        kwargs["mlp_layer"] = f"$timm.layers.{kwargs['mlp_layer']}"
    return {
        "imports": [
            "$import pathlib",
            "$import numpy as np",
            "$import PIL.Image as Image",
            "$import PIL.ImageOps as ImageOps",
            "$import timm",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "timm.create_model",
            "model_name": spec.backbone.name,
            "pretrained": False,
            "num_classes": len(spec.classes),
            "img_size": spec.backbone.image_size,
            **kwargs,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _transforms(preprocessing)},
        "dataset": {
            "_target_": "Dataset",
            "data": (
                "$[{'image': str(path)} for path in sorted(pathlib.Path(@dataset_dir).rglob('*')) "
                f"if path.suffix.lower() in {IMAGES}]"
            ),
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 16, "num_workers": 0},
        "inferer": _inferer(preprocessing),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", _ACTIVATION[spec.task]: True}],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": f"$@bundle_root + '/{WEIGHTS.as_posix()}'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "batch_transform": "$lambda batch: [one['image'].meta for one in batch]",
                "output_transform": "$monai.handlers.from_engine('pred')",
            },
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _inferer(preprocessing: Preprocessing) -> Config | str:
    """MONAI's simplest inferer, or the mean of the logits over the flips of an image."""
    if preprocessing.test_time_flips == "none":
        return {"_target_": "SimpleInferer"}
    return (
        "$lambda inputs, network, *more, **options: torch.stack([network(inputs.flip(axes), *more, **options) "
        f"for axes in {FLIPS[preprocessing.test_time_flips]}]).mean(dim=0)"
    )


def _transforms(preprocessing: Preprocessing) -> list[Config]:
    """From a file's name under ``image`` to the network's input, float32 (3,S,S)."""
    decoding = preprocessing.decoding
    means, stds = ([255 * value for value in values] for values in (preprocessing.mean, preprocessing.std))
    square: list[Config] = []
    if decoding.fit == "pad":
        # What SpatialPad adds has one value for all channels: 0, once the colour to pad with is taken off.
        colour = [float(value) for value in decoding.pad_value]
        means = [mean - value for mean, value in zip(means, colour, strict=True)]
        square = [_normalised(colour, [1.0, 1.0, 1.0]), _image("SpatialPadd", spatial_size=_sides(decoding))]
    elif decoding.fit == "crop":
        square = [_image("CenterSpatialCropd", roi_size=_sides(decoding))]
    return [
        _image("LoadImaged", reader=_reader(decoding), dtype="$np.uint8"),
        _image("EnsureChannelFirstd", channel_dim=-1),
        *_resizing(decoding),
        *square,
        _normalised(means, stds),
    ]


def _reader(decoding: Decoding) -> Config:
    """Rows first, where MONAI's own order is columns first; see `pt_peft.data.transforms.to_rgb` for the rest."""
    steps = [
        "$ImageOps.exif_transpose",
        "$lambda image: Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image.convert('RGBA')) "
        "if image.has_transparency_data and not image.mode.startswith('I;16') else image",
        f"$lambda image: Image.fromarray({_EIGHT_BITS[decoding.intensity]}) if image.mode[0] in 'IF' else image",
        "$lambda image: image.convert('RGB')",
    ]
    return {
        "_target_": "PILReader",
        "converter": {"_target_": "Compose", "transforms": steps},
        "reverse_indexing": False,
    }


def _resizing(decoding: Decoding) -> list[Config]:
    sides = _SIDES[decoding.fit].format(size=decoding.image_size)
    resize = (
        f"$lambda x: torch.nn.functional.interpolate(x[None], {sides}, mode='{decoding.interpolation}', "
        f"antialias={decoding.antialias})[0]"
    )
    steps = [_image("Lambdad", func=resize)]
    if decoding.fit == "crop":  # at most eight times as long as wide first, as ours
        middle = "$lambda x: monai.transforms.CenterSpatialCrop([min(n, 8 * min(x.shape[1:])) for n in x.shape[1:]])(x)"
        steps.insert(0, _image("Lambdad", func=middle))
    return steps


def _sides(decoding: Decoding) -> list[int]:
    return [decoding.image_size, decoding.image_size]


def _normalised(subtrahend: list[float], divisor: list[float]) -> Config:
    return _image("NormalizeIntensityd", subtrahend=subtrahend, divisor=divisor, channel_wise=True)


def _image(target: str, **arguments: Any) -> Config:
    """A transform of the image of each item."""
    return {"_target_": target, "keys": "image", **arguments}


def metadata(header: Header, spec: ModelSpec, preprocessing: Preprocessing) -> Config:
    """The content of ``configs/metadata.json``, by `SCHEMA`.

    Raises:
        UserError: if a name would mean something else in MONAI's configs.
    """
    classes = {str(number): name for number, name in enumerate(spec.classes)}
    size = preprocessing.decoding.image_size
    used = versions(("monai", "numpy", "pillow", "timm"))
    said: Config = {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"written by pt-peft {__version__}"},
        "monai_version": used["monai"],
        "pytorch_version": torch.__version__,
        "numpy_version": used["numpy"],
        "required_packages_version": {"pillow": used["pillow"], "pytorch-ignite": IGNITE, "timm": used["timm"]},
        "name": str(header.get("experiment", "not known")),
        "task": f"Classification of images ({spec.task})",
        "description": (
            f"{spec.backbone.name}, fine-tuned by several sites together with {spec.method.name}, which is merged into "
            "its weights. README.md is the model card."
        ),
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": "the sites' own images; see README.md",
        "data_type": "PNG, JPEG, BMP or TIFF",
        "intended_use": "Research. Not a medical device.",
        "pred_classes": ", ".join(spec.classes),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": 3,
                    "spatial_shape": [size, size],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(spec.classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": classes,
                }
            },
        },
    }
    _check_plain(said, "metadata.json")
    return said


def _check_plain(value: object, where: str) -> None:
    """Raises UserError for a text that MONAI's config would run as code, or replace by something else."""
    if isinstance(value, dict):
        for name, one in cast(dict[str, object], value).items():
            _check_plain(one, f"{where}: {name}")
    elif isinstance(value, list | tuple):
        for one in cast(list[object], value):
            _check_plain(one, where)
    elif isinstance(value, str) and (value.startswith(("$", "@", "%")) or "@#" in value or "%#" in value):
        raise UserError(
            f"--format monai_bundle: {where} is {value!r}, which MONAI's configs do not take as text; a text that does "
            "not begin with $, @ or % would be right."
        )


def _readme(spec: ModelSpec) -> str:
    """``docs/README.md``."""
    classes = table(("output", "class"), [(str(number), plain(name)) for number, name in enumerate(spec.classes)])
    return README.format(classes=classes, activation=_ACTIVATION[spec.task])
