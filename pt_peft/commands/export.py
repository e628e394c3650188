"""Writes a run's final adapter in a format that other programs read.

The exported model is loaded back, and kept only if its logits equal the adapter's. A folder has a model card.

Example:
    pt-peft export simulator_workspace --format onnx --out lesions.onnx
"""

import argparse
from pathlib import Path

FORMATS = {
    "adapter": "our adapter.safetensors",
    "peft": "an HF PEFT folder, for a method that is one of its tuners",
    "timm": "a timm folder with the adapter merged into the weights",
    "onnx": "one ONNX file, from images in [0, 1] to logits",
    "monai_bundle": "a MONAI bundle with the adapter merged into the weights",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", type=Path, help="adapter file, simulator workspace or downloaded job")
    shown = "; ".join(f"{name}: {summary}" for name, summary in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, required=True, help=shown)
    parser.add_argument("--out", type=Path, required=True, help="file or folder to write; must not exist")
    parser.add_argument(
        "--backbone", type=Path, help="the backbone's weights file (default: the weights of the embedded backbone)"
    )
    parser.add_argument(
        "--base-model", metavar="ID", help="where the backbone is published on the Hugging Face Hub, for the model card"
    )
    parser.add_argument(
        "--license", metavar="ID", help="the exported model's licence by its name on the Hub, for the model card"
    )


def run(options: argparse.Namespace) -> None:
    """Exports the adapter. Raises UserError if the format cannot hold it; nothing is written then."""
    from pt_peft.export.formats import export
    from pt_peft.export.model_card import Told

    told = Told(options.base_model, options.license)
    difference = export(options.run, options.format, options.out, options.backbone, told)
    print(f"{options.out}: {FORMATS[options.format]}; its logits differ by at most {difference:.1g}")
