"""The formats by name: writes one and checks it, and loads any of them."""

import os
import shutil
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from pt_peft.errors import UserError
from pt_peft.export import adapter, model_card, monai_bundle, onnx_file, peft_folder, timm_folder
from pt_peft.export.classifier import Classifier, torch_classifier
from pt_peft.export.model_card import Told
from pt_peft.files import check_place

TOLERANCE = 1e-4
"""Largest difference of a logit between an exported model and the adapter that it comes from, as a share of the largest
logit if that is above 1."""

CPU = torch.device("cpu")
NOTHING = Told()
FORMATS: dict[str, Callable[[Path, Path | None, Path], None]] = {
    "adapter": adapter.write,
    "peft": peft_folder.write,
    "timm": timm_folder.write,
    "onnx": onnx_file.write,
    "monai_bundle": monai_bundle.write,
}
"""Each writes the adapter file given first, on the backbone's file given second, to the path given last."""


def export(run: Path, name: str, out: Path, weights: Path | None, told: Told = NOTHING) -> float:
    """Writes the final adapter of a run in a format, loads it back, and compares its logits.

    A folder gets a model card.

    Args:
        run: the adapter file, or the folder of a run.
        name: key of `FORMATS`.
        out: file or folder to write.
        weights: the backbone's file; None takes the embedded one.
        told: what no file says, for the model card.

    Returns:
        The largest difference of a logit on a few random images.

    Raises:
        UserError: if `out` exists, the format cannot hold the method or has no model card for what is `told`, or the
            logits differ; then `out` is not written.
    """
    source = adapter.find_adapter(run)
    if out.exists():
        raise UserError(f"--out: {out} exists already.")
    check_place(out)
    if name == "onnx" and out.suffix != ".onnx":
        raise UserError(f"--out: {out.name} does not end in .onnx, by which the format is known.")
    if told != NOTHING and name not in model_card.LIBRARIES:
        folders = ", ".join(model_card.LIBRARIES)
        raise UserError(
            f"--base-model, --license: --format {name} is one file without a model card; {folders} have one."
        )
    unfinished = out.resolve().with_name(f".{uuid.uuid4().hex}{out.suffix}")
    try:
        with _written(out):
            FORMATS[name](source, weights, unfinished)
        if name in model_card.LIBRARIES:
            card = model_card.model_card(source, name, told)
            (unfinished / model_card.FILE_NAME).write_text(card, encoding="utf-8")
        if name == "peft" and told.base_model:
            peft_folder.name_base(unfinished, told.base_model)
        difference, largest = _difference(load(source, weights), load(unfinished, weights))
        if not difference <= TOLERANCE * max(1.0, largest):
            raise UserError(
                f"--format {name}: the exported model's logits differ from the adapter's by {difference:.2g}, more "
                f"than {TOLERANCE:g} of {max(1.0, largest):.2g}; this format does not express this method on this "
                "backbone."
            )
        os.rename(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if unfinished.is_file():
            unfinished.unlink()
    return difference


@contextmanager
def _written(out: Path) -> Generator[None]:
    """Makes a UserError of what the block raises where the disk is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out: {out} cannot be written ({error}).") from None


def load(path: Path, weights: Path | None, device: torch.device = CPU) -> Classifier:
    """Loads a trained model from any format.

    Args:
        path: an adapter file, the folder of a run, or a file or folder that `export` wrote.
        weights: the backbone's file; None takes the embedded one. Merged models and ONNX files need none.
        device: where the model computes; ONNX stays on the CPU.

    Raises:
        UserError: if `path` is none of these, or its backbone's file is not given.
    """
    if path.is_dir() and (path / peft_folder.CONFIG).is_file():
        return torch_classifier(*peft_folder.load(path, weights), device)
    if path.is_dir() and (path / timm_folder.WEIGHTS).is_file():
        return torch_classifier(*timm_folder.load(path), device)
    if path.is_dir() and (path / monai_bundle.WEIGHTS).is_file():
        return torch_classifier(*monai_bundle.load(path), device)
    if path.is_file() and path.suffix.lower() == ".onnx":
        return onnx_file.load(path)
    file = adapter.find_adapter(path)
    model, _, header = adapter.open_adapter(file, weights)
    return torch_classifier(model.module, adapter.read_description(header, file), device)


def _difference(expected: Classifier, exported: Classifier) -> tuple[float, float]:
    """The largest difference of a logit on random images, and the largest logit."""
    size = expected.decoding.image_size
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    right = expected.logits(images)
    return float((right - exported.logits(images)).abs().max()), float(right.abs().max())
