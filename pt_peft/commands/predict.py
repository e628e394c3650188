"""Classifies images with an adapter, a run, or anything that ``export`` wrote.

The CSV has a row for each image: its file, the predicted class, and a probability for each class.

Example:
    python -m pt_peft predict lesions.onnx my_images --out predictions.csv
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pt_peft.data.archive import SUFFIXES
from pt_peft.errors import UserError
from pt_peft.files import check_place, write_atomically

if TYPE_CHECKING:
    from pt_peft.experiment.own_images import Frames
    from pt_peft.experiment.sections import ModelSpec
    from pt_peft.export.classifier import Classifier

BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("adapter", type=Path, help="adapter file, run, HF PEFT folder, timm folder or .onnx")
    parser.add_argument("images", type=Path, nargs="+", help="image files, and folders that are searched for images")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write; must not exist")
    parser.add_argument(
        "--backbone", type=Path, help="the backbone's weights file (default: the weights of the embedded backbone)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs; 'auto' takes a GPU if there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--frames",
        type=_frames,
        help="the image in files of several frames or pages: a number, counted from 0, or 'all' if each frame is one "
        "(as data.frames of site.json; default: such files are refused)",
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be decoded, with a warning each"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the CSV. Raises UserError if there is no image, or one cannot be decoded; no CSV is written then."""
    files = find_images(options.images)
    check_place(options.out)
    if options.out.exists() or options.out.is_symlink():
        raise UserError(f"--out: {options.out} exists already.")
    from pt_peft.export.formats import load
    from pt_peft.training.trainer import pick_device

    classifier = load(options.adapter, options.backbone, pick_device(options.device, "--device"))
    spec = classifier.spec
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "prediction", *(f"p_{name}" for name in spec.classes)])
    unreadable = 0
    names = _names(files, options.frames)
    for batch in _batches(names, spec.backbone.image_size, options.frames):
        for failure in batch.failures:
            if not options.skip_unreadable:
                raise UserError(f"{failure} --skip-unreadable would leave it out.")
            print(f"warning: {failure}", file=sys.stderr)
        unreadable += len(batch.failures)
        if batch.names:
            for name, row in zip(batch.names, probabilities(classifier, np.stack(batch.images)), strict=True):
                writer.writerow([name, prediction(spec, row), *(f"{value:.6f}" for value in row)])
    if unreadable == len(names):
        raise UserError("none of the images can be decoded.")
    # File names that are not UTF-8 keep their bytes.
    write_atomically(options.out, table.getvalue().encode("utf-8", "surrogateescape"))
    print(f"{options.out}: {len(names) - unreadable} images, {unreadable} left out")


def _frames(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return int(text)


def _names(files: list[Path], frames: Frames) -> list[str]:
    """The names of the images in `files`: of each frame if `frames` is ``all``."""
    from pt_peft.data.frames import file_frames

    names = [str(path) for path in files]
    return [frame for name in names for frame in file_frames(name, _open_file)[0]] if frames == "all" else names


def find_images(given: list[Path]) -> list[Path]:
    """The image files in `given`, each once, in order; folders are searched.

    Raises:
        UserError: if a path does not exist, or a folder has no images.
    """
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UserError(f"{path}: has no images ({', '.join(SUFFIXES)}).")
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            raise UserError(f"{path}: does not exist.")
    return list(found)


def probabilities(classifier: Classifier, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Softmax of the logits, or their sigmoid for ``multilabel``.

    Args:
        classifier: the model.
        images: uint8 (B,3,S,S).

    Returns:
        float32 (B,K).

    Raises:
        UserError: if the model does not give one finite logit for each class.
    """
    import torch

    logits = classifier.logits(torch.as_tensor(images).float().div_(255))
    classes = len(classifier.spec.classes)
    if logits.shape[1:] != (classes,):
        raise UserError(f"the model gives {logits.shape[1]} logits, but its header names {classes} classes.")
    if not logits.isfinite().all():
        raise UserError("the model gives values that are not finite: its weights are damaged.")
    multilabel = classifier.spec.task == "multilabel"
    return (logits.sigmoid() if multilabel else logits.softmax(dim=1)).numpy()


def prediction(spec: ModelSpec, row: npt.NDArray[np.float32]) -> str:
    """The most probable class; for ``multilabel`` all classes above one half, joined by ``|``."""
    if spec.task == "multilabel":
        return "|".join(name for name, value in zip(spec.classes, row, strict=True) if value > 0.5)
    return spec.classes[int(row.argmax())]


class _Batch(NamedTuple):
    """A batch of images, decoded."""

    names: list[str]
    """The images that can be read."""
    images: list[npt.NDArray[np.uint8]]
    """Their images, uint8 (3,S,S)."""
    failures: list[str]
    """What is wrong with the other images."""


def _batches(names: list[str], size: int, frames: Frames) -> Iterator[_Batch]:
    """Decodes the named images to side `size`, pixels, `BATCH` at a time."""
    from tqdm import tqdm

    from pt_peft.data.transforms import decode_files

    with tqdm(total=len(names), unit="image", disable=None) as progress:
        for start in range(0, len(names), BATCH):
            batch = _Batch([], [], [])
            some = names[start : start + BATCH]
            decoded = decode_files(some, _open_file, size, where="images", frames=frames)
            for name, image in zip(some, decoded, strict=True):
                if isinstance(image, UserError):
                    batch.failures.append(str(image))
                else:
                    batch.names.append(name)
                    batch.images.append(image)
                progress.update()
            yield batch


def _open_file(name: str) -> BinaryIO:
    return Path(name).open("rb")
