"""Writes a run's final adapter in a format that others read, and checks it."""

import argparse
from pathlib import Path

FORMATS = {
    "adapter": "our adapter.safetensors",
    "peft": "a folder of HF PEFT, for one of its tuners",
    "timm": "a folder of timm with the adapter merged into the weights",
    "onnx": "one ONNX file, from images in [0, 1] to logits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", type=Path, help="an adapter file, a simulator workspace or a downloaded job")
    shown = "; ".join(f"{name}: {summary}" for name, summary in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, required=True, help=shown)
    parser.add_argument("--out", type=Path, required=True, help="file or folder to write; must not exist")
    parser.add_argument("--backbone", type=Path, help="the backbone's weights file, unless it is the embedded one")


def run(options: argparse.Namespace) -> None:
    """Raises UserError if it cannot be written as asked; nothing is there then."""
    from pt_peft.export.formats import export

    difference = export(options.run, options.format, options.out, options.backbone)
    print(f"{options.out}: {FORMATS[options.format]}; its logits differ by at most {difference:.1g}")
