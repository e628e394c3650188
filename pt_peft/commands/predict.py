"""Classifies images with an adapter, a run, or anything that `export` wrote."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pt_peft.data.archive import SUFFIXES
from pt_peft.errors import UserError
from pt_peft.files import check_place, write_atomically

BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("adapter", type=Path, help="adapter file, run, HF PEFT folder, timm folder or .onnx")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders searched for them")
    parser.add_argument("--out", type=Path, required=True, help="CSV: file, prediction, a probability for each class")
    parser.add_argument("--backbone", type=Path, help="the backbone's weights file, unless it is the embedded one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be decoded, naming them"
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError if there is no image, or one cannot be decoded; no CSV is written then."""
    files = find_images(options.images)
    check_place(options.out)
    if options.out.exists() or options.out.is_symlink():
        raise UserError(f"--out: {options.out} exists already.")
    if not os.access(options.out.resolve().parent, os.W_OK):
        raise UserError(f"--out: {options.out.resolve().parent} cannot be written.")
    from pt_peft.export.formats import load
    from pt_peft.training.trainer import pick_device

    classifier = load(options.adapter, options.backbone, pick_device(options.device, "--device"))
    classes = classifier.spec.classes
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "prediction", *(f"p_{name}" for name in classes)])
    unreadable = 0
    for paths, images, failures in _batches(files, classifier.spec.backbone.image_size):
        for failure in failures:
            if not options.skip_unreadable:
                raise UserError(f"{failure} --skip-unreadable would leave it out.")
            print(f"warning: {failure}", file=sys.stderr)
        unreadable += len(failures)
        if paths:
            for path, row in zip(paths, probabilities(classifier, images), strict=True):
                writer.writerow([path, prediction(classifier.spec, row), *(f"{value:.6f}" for value in row)])
    if unreadable == len(files):
        raise UserError("none of the images can be decoded.")
    # Names that are not UTF-8 as the file system has them.
    write_atomically(options.out, table.getvalue().encode("utf-8", "surrogateescape"))
    print(f"{options.out}: {len(files) - unreadable} images, {unreadable} left out")


def find_images(given: list[Path]) -> list[Path]:
    """The image files in `given`, folders searched, each once, in order. Raises UserError for a path without any."""
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


def probabilities(classifier, images: np.ndarray) -> np.ndarray:
    """Softmax of the logits, or their sigmoid for ``multilabel``, float32 (B,K), of uint8 images (B,3,S,S)."""
    import torch

    logits = classifier.logits(torch.from_numpy(images).float().div_(255))
    classes = len(classifier.spec.classes)
    if logits.shape[1:] != (classes,):
        raise UserError(f"the model gives {logits.shape[1]} logits, but its header names {classes} classes.")
    if not logits.isfinite().all():
        raise UserError("the model gives values that are not finite: its weights are damaged.")
    many = classifier.spec.task == "multilabel"
    return (logits.sigmoid() if many else logits.softmax(dim=1)).numpy()


def prediction(spec, row: np.ndarray) -> str:
    """The most probable class; for ``multilabel`` those above one half, joined by ``|``."""
    if spec.task == "multilabel":
        return "|".join(name for name, value in zip(spec.classes, row, strict=True) if value > 0.5)
    return spec.classes[row.argmax()]


def _batches(files: list[Path], size: int) -> Iterator[tuple[list[Path], np.ndarray, list[str]]]:
    """Readable files of a batch, their images uint8 (B,3,S,S), and what is wrong with the others."""
    from tqdm import tqdm

    from pt_peft.data.transforms import decode_files

    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for start in range(0, len(files), BATCH):
            paths, images, failures = [], [], []
            batch = files[start : start + BATCH]
            decoded = decode_files([str(path) for path in batch], lambda name: open(name, "rb"), size, where="images")
            for path, image in zip(batch, decoded, strict=True):
                if isinstance(image, UserError):
                    failures.append(str(image))
                else:
                    paths.append(path)
                    images.append(image)
                progress.update()
            yield paths, np.stack(images) if images else np.empty((0, 3, size, size), np.uint8), failures
