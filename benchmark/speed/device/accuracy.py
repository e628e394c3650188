"""Cells of the evidence suite at 224 pixels on half of HAM10000, by the plain federated loop.

The settings are those of ``benchmark/suites/claims.yaml``, at 224 pixels in place of 96. Every cell is evaluated in
its own precision and in the other.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmark.oracle.baselines import pooled
from benchmark.oracle.evaluation import predict
from benchmark.oracle.predictions import Predictions
from benchmark.oracle.reference import federate, load_sites
from benchmark.speed.device.cases import ARCHITECTURES, CLASSES, Case
from benchmark.speed.device.pace import Pace
from benchmark.speed.device.packed import IMAGES, ROOT, TABLE, WEIGHTS
from benchmark.speed.device.steps import Skipped, Step
from pt_peft.data.site_data import SiteData
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.model.model_input import Precision
from pt_peft.schema import parse
from pt_peft.training.trainer import LocalTrainer

SECTION = "accuracy"
SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
FOLDS = 5
POINTS = 0.5
"""The most that bfloat16 may lose of float32's balanced accuracy, in points of a hundred."""
_OTHER: dict[Precision, Precision] = {"float32": "bfloat16", "bfloat16": "float32"}
_DECODING_S = 0.006
"""Seconds that decoding an image may take."""


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    kind: Literal["head", "pooled", "federated"]
    """``head``: no training, but a classifier that is solved from sums of features; ``pooled``: all images in one
    place; ``federated``: the four acquisition sites."""
    method: Literal["linear_probe", "lora_vpt", "full"]
    precision: Precision
    fold: int
    rounds: int = 12

    @property
    def name(self) -> str:
        """Unique among the cells."""
        return f"{self.kind}, {self.method}, {self.precision}, fold {self.fold}"


def cells() -> Iterator[Cell]:
    """All cells: in each fold the cheapest first, so that pairs of precisions are soon complete."""
    for fold in range(1, FOLDS + 1):
        for precision in ("bfloat16", "float32"):
            yield Cell("head", "linear_probe", precision, fold, rounds=0)
        for precision in ("bfloat16", "float32"):
            yield Cell("pooled", "lora_vpt", precision, fold)
        yield Cell("federated", "lora_vpt", "bfloat16", fold)
        yield Cell("federated", "full", "bfloat16", fold)


@dataclass(frozen=True)
class Source:
    """Where images and weights lie, and which cells they are for."""

    images: Path
    table: Path
    weights: Path
    cache: Path
    """Folder for decoded images."""
    size: int = 224
    backbone: Mapping[str, Any] | None = None
    """The section ``backbone`` without size and digest; None for ViT-Tiny."""

    def experiment(self, cell: Cell) -> Experiment:
        """Makes the experiment of `cell`."""
        options = {"lora": {"alpha": 8.0}} if cell.method == "lora_vpt" else {}
        training = {"imbalance": "balanced_softmax", "head_learning_rate": 3e-3}
        content = {
            "name": f"{cell.kind}-{cell.method}-{cell.precision}-{cell.fold}",
            "seed": cell.fold,
            "backbone": {
                **(self.backbone or {"name": "vit_tiny_patch16_224"}),
                "image_size": self.size,
                "sha256": sha256_of(self.weights),
            },
            "data": {
                "source": "site",
                "classes": CLASSES,
                "fit": "crop",
                "augment": ["flip", "rotate90"] if cell.rounds else [],
                "fold": {"number": cell.fold, "of": FOLDS},
            },
            "partition": {"kind": "natural"},
            "method": {"name": cell.method, "options": options},
            "training": {
                "batch_size": 32,
                "learning_rate": 1e-4 if cell.method == "full" else 2e-3,
                "precision": cell.precision,
                **(training if cell.rounds else {}),
            },
            "head": {} if cell.rounds else {"start": "ridge"},
            "federation": {"rounds": cell.rounds, "sites": SITES, "min_sites": len(SITES)},
        }
        return parse(Experiment, content, "benchmark.speed.device")

    def site(self) -> Site:
        """Makes the settings of all simulated sites."""
        content = {
            "data": {
                "images": str(self.images),
                "table": str(self.table),
                "columns": {"label": "dx", "group": "lesion_id", "site": "site", "split": None},
                "pooled": True,
            },
            "backbone": str(self.weights),
            "cache": str(self.cache),
            "limits": None,
        }
        return parse(Site, content, "benchmark.speed.device")

    @classmethod
    def packed(cls, cache: Path) -> "Source":
        """What the pack holds. Raises Skipped in a clone."""
        source = cls(ROOT / IMAGES, ROOT / TABLE, ROOT / WEIGHTS, cache)
        for path in (source.images, source.table, source.weights):
            if not path.is_file():
                raise Skipped(f"{path} is not here; the pack has it")
        return source


class Bench:
    """Runs cells; decodes the images once."""

    def __init__(self, folder: Path, device: torch.device, pace: Pace, source: Source | None = None):
        """`folder` takes decoded images; `source` None stands for the pack's."""
        self._folder, self._device, self._pace, self._source = folder, device, pace, source
        self._counts: dict[str, int] = {}
        self._seen: list[tuple[float, float]] = []

    def least(self, cell: Cell) -> float:
        """Estimates the seconds of `cell`."""
        images = self._counts or {"train": 3500, "test": 1000}
        decoding = 0.0 if self._counts else _DECODING_S * (images["train"] + images["test"])
        passes = cell.rounds * images["train"] + (images["train"] + images["test"]) / 3 + images["test"] / 3
        method = "full" if cell.method == "full" else "lora_vpt"
        case = Case("ViT-Ti/16 at 224", method, cell.precision, 32, ARCHITECTURES["ViT-Ti/16 at 224"])
        return decoding + 1.3 * passes * self._pace.step(case) / case.batch_size

    def run(self, cell: Cell) -> dict[str, Any]:
        """Trains and evaluates. Raises Skipped without images."""
        source = self._source or Source.packed(self._folder)
        started = time.monotonic()
        experiment, site = source.experiment(cell), source.site()
        sites = load_sites(experiment, site, list(SITES))
        self._counts = {
            "train": sum(len(one.train) for one in sites.values()),
            "test": sum(len(one.test) for one in sites.values()),
        }
        loaded = time.monotonic()
        trainer = LocalTrainer(experiment, source.weights, self._device)
        trained_on: Mapping[str, SiteData] = {"pooled": pooled(sites)} if cell.kind == "pooled" else sites
        final = federate(trainer, trained_on)
        trained = time.monotonic()
        own = predict(trainer, final.tensors, {}, sites, "test")
        other = replace(cell, precision=_OTHER[cell.precision])
        there = LocalTrainer(source.experiment(other), source.weights, self._device)
        compared = predict(there, final.tensors, {}, sites, "test")
        return {
            "kind": cell.kind, "method": cell.method, "precision": cell.precision, "fold": cell.fold,
            "rounds": cell.rounds, "images": self._counts, "training_s": trained - loaded,
            "decoding_s": loaded - started,
            "training_images_per_s": cell.rounds * self._counts["train"] / (trained - loaded),
            "balanced_accuracy": _balanced(own), "accuracy": _metrics(own)["accuracy"], "auroc": _metrics(own)["auroc"],
            "in_the_other_precision": {
                "precision": other.precision, "balanced_accuracy": _balanced(compared),
                "same_answers": float((own.logits.argmax(1) == compared.logits.argmax(1)).mean()),
            },
        }  # fmt: skip


def accuracy_steps(bench: Bench) -> Iterator[Step]:
    """A step for each cell."""

    def step(cell: Cell) -> Step:
        return Step(SECTION, cell.name, lambda left: bench.run(cell), lambda: bench.least(cell))

    yield from map(step, cells())


def _metrics(predictions: Predictions) -> Mapping[str, Any]:
    return predictions.metrics("multiclass")["pooled"]


def _balanced(predictions: Predictions) -> float:
    return _metrics(predictions)["balanced_accuracy"]
