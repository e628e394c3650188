"""Classifies images with an adapter, a run, or anything that ``export`` wrote.

The CSV has a row for each image: its file, the predicted class, and a probability for each class.

Example:
    pt-peft predict lesions.onnx my_images --out predictions.csv
    pt-peft predict lesions.onnx my_images --out at_my_ward.csv --prior my_ward.csv
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pt_peft.data.archive import OpenArchive, open_archive
from pt_peft.data.listing import listed_files
from pt_peft.data.problems import Level
from pt_peft.errors import UserError, one_line
from pt_peft.files import check_place, write_atomically
from pt_peft.prediction import BATCH, Predictions, logits, move_of, predictions

if TYPE_CHECKING:
    from pt_peft.experiment.own_images import Frames
    from pt_peft.experiment.preprocessing import Decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("adapter", type=Path, help="adapter file, run, .onnx, or HF PEFT, timm or MONAI folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files, and folders or zip archives of them")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write; must not exist")
    parser.add_argument(
        "--backbone", type=Path, help="the backbone's weights file (default: the weights of the embedded backbone)"
    )
    parser.add_argument(
        "--prior",
        metavar="PRIOR",
        help="how frequent the classes are among these images, to which the probabilities are moved: 'uniform' (all "
        "alike), 'federation' (as at its sites), 'em' (estimated from these images), or a file with the prevalence or "
        "count of each class, JSON or CSV (default: as the model was trained)",
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
    move = move_of(classifier, options.prior, "--prior") if options.prior is not None else None
    shown: list[str] = []
    rows: list[npt.NDArray[np.float32]] = []
    unreadable = 0
    with _opened(files) as open_image:
        names = _names(files, open_image, options.frames)
        for batch in _batches(names, open_image, classifier.decoding, options.frames):
            for failure in batch.failures:
                if not options.skip_unreadable:
                    raise UserError(f"{failure} --skip-unreadable would leave it out.")
                print(f"warning: {one_line(failure)}", file=sys.stderr)
            unreadable += len(batch.failures)
            if batch.names:
                shown += batch.names
                rows.append(logits(classifier, np.stack(batch.images)))
    if not rows:
        raise UserError("none of the images can be decoded.")
    found = predictions(classifier.spec, np.concatenate(rows), move)
    # File names that are not UTF-8 keep their bytes.
    write_atomically(options.out, _csv(shown, found).encode("utf-8", "surrogateescape"))
    print(f"{options.out}: {len(shown)} images, {unreadable} left out")
    if found.prevalence is not None:
        shares = zip(found.classes, found.prevalence, strict=True)
        print(f"for the prevalence {', '.join(f'{name} {share:.4f}' for name, share in shares)}")


def _csv(names: Iterable[str], found: Predictions) -> str:
    """A row for each image."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "prediction", *(f"p_{name}" for name in found.classes)])
    for name, predicted, row in zip(names, found.predicted, found.probabilities, strict=True):
        writer.writerow([name, predicted, *(f"{value:.6f}" for value in row)])
    return table.getvalue()


def _frames(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return int(text)


@contextmanager
def _opened(files: Mapping[str, tuple[Path, str]]) -> Generator[OpenArchive]:
    """Opens the folders and archives of `files`. Yields what opens a file by its path."""
    with ExitStack() as stack:
        archives = {path: stack.enter_context(open_archive(path)) for path in {path for path, _ in files.values()}}

        def open_image(name: str) -> BinaryIO:
            archive, inside = files[name]
            return archives[archive](inside)

        yield open_image


def _names(files: Iterable[str], open_image: OpenArchive, frames: Frames) -> list[str]:
    """The names of the images in `files`: of each frame if `frames` is ``all``."""
    from pt_peft.data.frames import file_frames

    if frames != "all":
        return list(files)
    return [frame for file in files for frame in file_frames(file, open_image)[0]]


def find_images(given: list[Path]) -> dict[str, tuple[Path, str]]:
    """The images in `given`, each once, in order: by path, the folder or zip archive, and the name in it.

    Folders and zip archives are searched; what they have besides images is said on standard error.

    Raises:
        UserError: if a path does not exist, or a folder or archive has no images, or links to nothing.
    """
    found: dict[str, tuple[Path, str]] = {}
    for path in given:
        if path.is_dir() or zipfile.is_zipfile(path):
            inside = listed_files(path, _report)
            if not inside:
                raise UserError(f"{path}: has no images.")
            found.update({str(path / name): (path, name) for name in inside})
        elif path.is_file():
            found[str(path)] = (path.parent, path.name)
        else:
            raise UserError(f"{path}: does not exist.")
    return found


def _report(kind: str, message: str, level: Level = "error") -> None:
    """Raises UserError, or prints a warning. Satisfies `pt_peft.data.problems.Report`."""
    if level == "error":
        raise UserError(message)
    print(f"warning: {one_line(message)}", file=sys.stderr)


class _Batch(NamedTuple):
    """A batch of images, decoded."""

    names: list[str]
    """The images that can be read."""
    images: list[npt.NDArray[np.uint8]]
    """Their images, uint8 (3,S,S)."""
    failures: list[str]
    """What is wrong with the other images."""


def _batches(names: list[str], open_image: OpenArchive, decoding: Decoding, frames: Frames) -> Iterator[_Batch]:
    """Decodes the named images, `BATCH` at a time."""
    from tqdm import tqdm

    from pt_peft.data.transforms import decode_files

    with tqdm(total=len(names), unit="image", disable=None) as progress:
        for start in range(0, len(names), BATCH):
            batch = _Batch([], [], [])
            some = names[start : start + BATCH]
            decoded = decode_files(some, open_image, decoding, where="images", frames=frames)
            for name, image in zip(some, decoded, strict=True):
                if isinstance(image, UserError):
                    batch.failures.append(str(image))
                else:
                    batch.names.append(name)
                    batch.images.append(image)
                progress.update()
            yield batch
