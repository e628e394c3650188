"""A trained model in Python: images to probabilities. Imports torch only when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pt_peft.errors import UserError

if TYPE_CHECKING:
    from pt_peft.experiment.preprocessing import Decoding
    from pt_peft.experiment.sections import ModelSpec, Task
    from pt_peft.export.classifier import Classifier
    from pt_peft.export.prevalence import Move, Prior

BATCH = 64
"""Images that go through the model at once."""
AnyImage = str | Path | Image.Image | npt.NDArray[Any]
"""A file's path, an image of Pillow's, or an array (H,W) or (H,W,3) of a dtype that Pillow takes, such as uint8."""


@dataclass(frozen=True)
class Predictions:
    """What a model says of N images, in their order."""

    classes: tuple[str, ...]
    """The K classes, in the order of the columns."""
    probabilities: npt.NDArray[np.float32]
    """float32 (N,K). Rows sum to 1; for ``multilabel`` each class has a probability of its own."""
    predicted: tuple[str, ...]
    """The most probable class of each image; for ``multilabel`` all classes above one half, joined by ``|``."""
    prevalence: npt.NDArray[np.float64] | None = None
    """The share of images of each class that the probabilities are for, float64 (K,), where one was asked for."""


class Predictor:
    """A trained model that takes images as they are. `load` makes one."""

    def __init__(self, classifier: Classifier):
        """Predicts by `classifier`."""
        self._classifier = classifier

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the columns."""
        return self._classifier.spec.classes

    @property
    def task(self) -> Task:
        """Whether an image has one class, several, or a grade."""
        return self._classifier.spec.task

    def predict(self, images: Iterable[AnyImage], prior: Prior | None = None) -> Predictions:
        """Classifies images, which become the model's input as in the federation's evaluation.

        Args:
            images: a list, or anything that gives one after the other; they may differ in size.
            prior: how frequent the classes are among the images at hand, to which the probabilities are moved
                (`pt_peft.statistics.prevalence`): ``uniform``: all alike; ``federation``: as among the images of its
                sites; ``em``: as these images themselves make most likely, at least 25 for each class, or 50 for
                ``multilabel``; a prevalence or count of each class, by name or in a file of JSON or CSV. None: as the
                model was trained.

        Raises:
            UserError: if there is none, or one cannot be read; the message says which. If `prior` is not right, or the
                model does not know what it needs.
        """
        if isinstance(images, (str, Path, Image.Image)) or getattr(images, "ndim", 4) < 4:
            raise UserError("predict: 'images' is one image; a list of images would be right.")
        move = None if prior is None else move_of(self._classifier, prior, "predict: 'prior'")
        decoded = _decoded(images, self._classifier.decoding)
        rows: list[npt.NDArray[np.float32]] = []
        while batch := list(islice(decoded, BATCH)):
            rows.append(logits(self._classifier, np.stack(batch)))
        if not rows:
            raise UserError("predict: 'images' has no image; at least one would be right.")
        return predictions(self._classifier.spec, np.concatenate(rows), move)


def load(
    path: str | Path, *, backbone: str | Path | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Predictor:
    """Loads a trained model.

    Args:
        path: an adapter file, the folder of a run, or a file or folder that ``pt-peft export`` wrote.
        backbone: the backbone's weights file; None takes the embedded one. Merged models and ONNX files need none.
        device: where the model computes; ``auto`` takes a GPU if there is one. ONNX stays on the CPU.

    Raises:
        UserError: if `path` is none of these, or its backbone's file is not given.
    """
    from pt_peft.export.formats import load as load_classifier
    from pt_peft.training.trainer import pick_device

    weights = None if backbone is None else Path(backbone)
    return Predictor(load_classifier(Path(path), weights, pick_device(device, "device")))


def move_of(classifier: Classifier, prior: Prior, where: str) -> Move:
    """What moves a model's probabilities to a prevalence; raises UserError, see `pt_peft.export.prevalence.move_to`."""
    from pt_peft.export.prevalence import move_to

    return move_to(prior, classifier.spec, classifier.prevalence, where)


def logits(classifier: Classifier, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A model's logits.

    Args:
        classifier: the model.
        images: uint8 (B,3,S,S).

    Returns:
        float32 (B,K).

    Raises:
        UserError: if the model does not give one finite logit for each class.
    """
    import torch

    found = classifier.logits(torch.as_tensor(images).float().div_(255))
    classes = len(classifier.spec.classes)
    if found.shape[1:] != (classes,):
        raise UserError(f"the model gives {found.shape[1]} logits, but its header names {classes} classes.")
    if not found.isfinite().all():
        raise UserError("the model gives values that are not finite: its weights are damaged.")
    return found.numpy()


def predictions(spec: ModelSpec, found: npt.NDArray[np.float32], move: Move | None) -> Predictions:
    """What logits say: their softmax, or their sigmoid for ``multilabel``.

    Args:
        spec: of the model.
        found: its logits (N,K).
        move: to another prevalence; None as it was trained.
    """
    from pt_peft.statistics.prevalence import probabilities

    multilabel = spec.task == "multilabel"
    moved, prevalence = move(found) if move else (found, None)
    rows = probabilities(moved, multilabel).astype(np.float32)
    return Predictions(spec.classes, rows, tuple(_answer(spec, row) for row in rows), prevalence)


def _answer(spec: ModelSpec, row: npt.NDArray[np.float32]) -> str:
    """The most probable class; for ``multilabel`` all classes above one half, joined by ``|``."""
    if spec.task == "multilabel":
        return "|".join(name for name, value in zip(spec.classes, row, strict=True) if value > 0.5)
    return spec.classes[int(row.argmax())]


def _decoded(images: Iterable[AnyImage], decoding: Decoding) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields each image, uint8 (3,S,S)."""
    from pt_peft.data.archive import open_archive
    from pt_peft.data.transforms import decode_files, decode_image

    with open_archive(Path()) as open_image:  # whose names are paths from here, or from the root
        for number, image in enumerate(images):
            if isinstance(image, (str, Path)):
                (pixels,) = decode_files([str(image)], open_image, decoding, where="predict")
                if isinstance(pixels, UserError):
                    raise pixels
                yield pixels
                continue
            try:
                yield decode_image(image if isinstance(image, Image.Image) else Image.fromarray(image), decoding)
            except Exception as error:  # decoders raise anything
                shown = f" {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else ""
                raise UserError(
                    f"predict: images[{number}] is a {type(image).__name__}{shown} that is no image ({error}); a path, "
                    "an image of Pillow's, or an array such as uint8 (H,W) or (H,W,3) would be right."
                ) from None
