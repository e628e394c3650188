"""A pre-training from the data to the written file."""

import hashlib
import json
import math
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from pt_peft import __version__
from pt_peft.data.site_data import ImageSplit, load_site_data
from pt_peft.environment import machine, versions
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Partition
from pt_peft.experiment.site import Site
from pt_peft.files import check_place, write_atomically
from pt_peft.model.backbone import head_name, pinned_weights
from pt_peft.model.precision import resolved_precision
from pt_peft.model.torch_threads import torch_threads
from pt_peft.pretraining.mae import train_masked_autoencoder
from pt_peft.pretraining.recipe import Recipe
from pt_peft.pretraining.supervised import train_classifier
from pt_peft.training.trainer import site_device

OBJECTIVES = {"supervised": train_classifier, "mae": train_masked_autoencoder}
NAME = "pretrain"
"""The name of the site, for data that depend on it."""
PACKAGES = ("torch", "timm", "monai", "numpy")
"""Packages whose versions the description has."""


def pretrain(experiment: Experiment, site: Site, recipe: Recipe, out: Path) -> dict[str, dict[str, Any]]:
    """Trains a backbone further on one machine, and writes it.

    Args:
        experiment: its backbone, data, augmentation, precision and seed; its partition is not used.
        site: the backbone's file, the device, and the images, all training images of which are used.
        recipe: the options.
        out: safetensors file to write, with timm's keys and without a head. The file of that name and ``.json`` gets
            the description.

    Returns:
        The description: a ``backbone`` section for an experiment, and its ``provenance``.

    Raises:
        UserError: if a file exists already, the site's backbone or data cannot be used, or the loss stops being finite;
            nothing is written then.
    """
    described = out.with_name(out.name + ".json")
    _check_output(out, described)
    source = pinned_weights(experiment.backbone, site)
    device = site_device(site)
    split = load_site_data(experiment.model_copy(update={"partition": Partition()}), site, NAME, [NAME]).train
    started = time.monotonic()
    losses = _Losses(recipe, len(split))
    with losses.progress, torch_threads(site.threads):
        threads = torch.get_num_threads()
        module = OBJECTIVES[recipe.objective](experiment, recipe, source, split, device, losses)
    head = head_name(module) + "."
    state = {
        key: value.detach().cpu().contiguous() for key, value in module.state_dict().items() if not key.startswith(head)
    }
    content = save(state)
    backbone = experiment.backbone.model_dump(mode="json", exclude={"allow_missing", "allow_unused"})
    record: dict[str, dict[str, Any]] = {
        "backbone": {**backbone, "sha256": hashlib.sha256(content).hexdigest()},
        "provenance": {
            "command": f"pt-peft pretrain --objective {recipe.objective} --epochs {recipe.epochs}",
            **{
                name: value
                for name, value in asdict(recipe).items()
                if name != "mask_ratio" or recipe.objective == "mae"
            },
            "loss": losses.by_epoch,
            "images": len(split),
            "seed": experiment.seed,
            "precision": resolved_precision(experiment.training.precision, device),
            "augment": list(experiment.data.augment),
            "experiment": experiment.name,
            "experiment_sha256": experiment.digest(),
            "source_sha256": experiment.backbone.sha256,
            "data_sha256": data_digest(split),
            "seconds": round(time.monotonic() - started),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": threads,
            "versions": {"pt_peft": __version__, **versions(PACKAGES)},
            "machine": machine(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    _check_output(out, described)
    _write(out, content, described, record)
    return record


class _Losses:
    """Collects the mean loss of each epoch, and shows a line of progress."""

    def __init__(self, recipe: Recipe, images: int):
        self.by_epoch: list[float] = []
        self._rate = recipe.learning_rate
        self._steps_per_epoch = math.ceil(images / recipe.batch_size)
        self._epoch: list[torch.Tensor] = []
        self.progress: tqdm[NoReturn] = tqdm(
            total=recipe.epochs * self._steps_per_epoch, unit="step", desc=recipe.objective, disable=None
        )

    def __call__(self, loss: torch.Tensor) -> None:
        """Takes the loss of one step. Raises UserError at the end of an epoch in which a loss was not finite."""
        self._epoch.append(loss)
        self.progress.update()
        if len(self._epoch) < self._steps_per_epoch:
            return
        mean = float(torch.stack(self._epoch).mean())
        self._epoch.clear()
        self.by_epoch.append(round(mean, 6))
        self.progress.set_postfix_str(f"loss={mean:.3f}")
        if not math.isfinite(mean):
            raise UserError(
                f"{NAME}: the training loss of epoch {len(self.by_epoch)} is {mean}; a smaller --learning-rate than "
                f"{self._rate} may be right."
            )


def data_digest(split: ImageSplit) -> str:
    """SHA-256 over shape, pixels and labels of the prepared images, in hex."""
    digest = hashlib.sha256(repr(split.images.shape).encode())
    for start in range(0, len(split), 1024):  # they may be more than memory holds
        digest.update(np.ascontiguousarray(split.images[start : start + 1024]).data)
    digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()


def _check_output(out: Path, described: Path) -> None:
    """Raises UserError, in terms of the option ``--out``, unless both files can be written."""
    if out.suffix != ".safetensors":
        raise UserError(f"--out: {out.name} does not end in .safetensors.")
    for path in (out, described):
        if path.exists():
            raise UserError(f"--out: {path} exists already.")
    check_place(out)


def _write(out: Path, content: bytes, described: Path, record: dict[str, dict[str, Any]]) -> None:
    """Writes both files; if the second cannot be written, removes the first."""
    try:
        write_atomically(out, content)
        write_atomically(described, (json.dumps(record, indent=2) + "\n").encode())
    except BaseException:
        out.unlink(missing_ok=True)
        raise
