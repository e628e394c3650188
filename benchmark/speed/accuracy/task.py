"""The task that all contenders do, and how a model of it is evaluated."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmark.oracle.evaluation import joined
from benchmark.oracle.predictions import Predictions
from benchmark.oracle.reference import load_sites, make_trainer
from benchmark.speed.accuracy.learner import Learner
from benchmark.speed.work import WEIGHTS
from benchmark.sweep.suite import overlaid
from pt_peft.data.items import SplitName
from pt_peft.data.site_data import SiteData
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Fold
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft.model.backbone import create_backbone, head_name, pinned_weights
from pt_peft.model.method import components
from pt_peft.presets import ham10000
from pt_peft.schema import parse

THREADS = os.cpu_count() or 1
"""Of evaluation, which no clock is on."""
Sections = Mapping[str, Any]
"""Fields of an experiment, by section."""
Evaluate = Callable[[Path, SplitName], float]
"""Balanced accuracy of the aggregate in a file on all sites' images of a split together."""


@dataclass(frozen=True)
class Task:
    """An experiment with LoRA and prompts, whose images all sites have, and the folder in which it is written down."""

    experiment: Experiment
    """Of our own run with its defaults."""
    site: Site
    """Of all simulated sites."""
    folder: Path
    data: Mapping[str, SiteData]
    """By site."""

    @classmethod
    def write(cls, experiment: Experiment, site: Site, folder: Path) -> "Task":
        """Decodes all images, and writes what `benchmark.speed.accuracy.learner` reads to a new `folder`.

        Args:
            experiment: its method is ``lora_vpt``; the backbone takes images in -1 … 1.
            site: whose images are meant; its cache becomes one in `folder`.
            folder: takes all.

        Raises:
            UserError: if images or weights are not there.
        """
        folder.mkdir(parents=True)
        site = site.model_copy(update={"cache": str((folder / "cache").resolve())})
        names = list(experiment.federation.sites)
        data = load_sites(experiment, site, names)
        for name, one in data.items():
            for split, file in ((one.train, name), (one.val, f"{name}.val")):
                np.savez(folder / f"{file}.npz", images=split.images, labels=split.labels)
        backbone = create_backbone(experiment.backbone, 1, pinned_weights(experiment.backbone, site))
        head = head_name(backbone) + "."
        state = {key: value.contiguous() for key, value in backbone.state_dict().items() if not key.startswith(head)}
        save_file(state, folder / WEIGHTS)
        training = experiment.training
        options = {method.name: config.model_dump() for method, config in components(experiment.method)}
        work = {
            "model": experiment.backbone.name,
            "image_size": experiment.backbone.image_size,
            "classes": len(experiment.data.classes),
            "sites": names,
            "rounds": experiment.federation.rounds,
            "batch_size": training.batch_size,
            "augment": bool(experiment.data.augment),
            "precision": "float32",  # what torch computes in unasked
            "rank": options["lora"]["rank"],
            "lora_alpha": options["lora"]["alpha"],
            "last_blocks": None,
            "prompts": options["vpt_deep"]["num_prompts"],
            "learning_rate": training.learning_rate,
            "head_learning_rate": training.head_learning_rate or training.learning_rate,
        }
        (folder / "work.json").write_text(json.dumps(work, indent=1))
        return cls(experiment, site, folder, data)

    @property
    def sites(self) -> list[str]:
        """Names."""
        return list(self.experiment.federation.sites)

    def with_fields(self, sections: Sections) -> Experiment:
        """The experiment with fields replaced."""
        return parse(Experiment, overlaid(self.experiment.model_dump(mode="json"), dict(sections)), "benchmark.speed")

    def evaluate_ours(self, sections: Sections) -> Evaluate:
        """Evaluates adapter files of our runs with these fields, in float32."""
        experiment = self.with_fields(overlaid(dict(sections), {"training": {"precision": "float32"}}))
        trainer = make_trainer(experiment, self.site.model_copy(update={"threads": THREADS}))
        return self._evaluate(
            lambda path: load_adapter(path)[0],
            lambda tensors, site, split: trainer.predict(tensors, getattr(self.data[site], split))[0],
        )

    def evaluate_theirs(self, load: Callable[[Learner, Path], None]) -> Evaluate:
        """Evaluates aggregates of plain PyTorch, which `load` reads into the model."""
        learner = Learner(self.folder, threads=THREADS)

        def opened(path: Path) -> None:
            load(learner, path)

        def logits(_: None, site: str, split: str) -> torch.Tensor:
            return learner.logits(torch.from_numpy(np.array(getattr(self.data[site], split).images)))

        return self._evaluate(opened, logits)

    def _evaluate(self, opened: Callable[[Path], Any], logits: Callable[[Any, str, str], torch.Tensor]) -> Evaluate:
        def evaluate(path: Path, split: SplitName) -> float:
            model = opened(path)
            found: Predictions = joined(
                {name: getattr(one, split) for name, one in self.data.items()},
                lambda site: logits(model, site, split).numpy(),
            )
            return found.metrics(self.experiment.data.task)["pooled"]["balanced_accuracy"]

        return evaluate


def load_trained(learner: Learner, path: Path) -> None:
    """Reads the plain loop's aggregate."""
    learner.load(load_file(path))


def load_checkpoint(learner: Learner, path: Path) -> None:
    """Reads a checkpoint of FLARE's persistor: the whole model, or the trained tensors with flat names."""
    held: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    flat: dict[str, str] = {name.replace(".", "__"): name for name in learner.trained}
    values = {flat.get(key, key.removeprefix("model.")): torch.as_tensor(value) for key, value in held.items()}
    learner.model.load_state_dict(values, strict=len(values) > len(learner.trained))


def ham10000_sites(rounds: int) -> tuple[Experiment, Site]:
    """HAM10000 by its four real sites: the preset with the trained classifier, on the first fold of five."""
    experiment, site = ham10000()
    fields = experiment.model_dump(mode="json")
    own = {
        "seed": 1,
        "head": {"finish": "trained"},
        "data": {"fold": Fold(number=1, of=5).model_dump()},
        "federation": {"rounds": rounds, "min_sites": len(experiment.federation.sites)},
    }
    # The table's own split would stand in the way of folds.
    columns = site.data.columns.model_copy(update={"split": None})
    folded = site.model_copy(update={"data": site.data.model_copy(update={"columns": columns})})
    return parse(Experiment, overlaid(fields, own), "benchmark.speed"), folded
