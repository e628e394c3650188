"""Provides the weights that the cells of a suite start from, pre-trained further where the suite says so."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from benchmark.sweep.cells import located
from benchmark.sweep.suite import InitialModel, Sections, expanded, overlaid
from pt_peft import schema
from pt_peft.data.site_data import load_site_data
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.pretraining.central import NAME, data_digest, pretrain
from pt_peft.pretraining.recipe import Recipe, default_rate


def initial_weights(name: str, model: InitialModel, defaults: Sections, cache: Path) -> Path | None:
    """The weights file of a backbone; None for the embedded one. Pre-training is done once, and kept in `cache`.

    Args:
        name: of the backbone in the suite.
        model: what the suite says of it.
        defaults: the suite's.
        cache: folder for tables and pre-trained weights.

    Raises:
        UserError: if a file is not there, or the pre-training is not possible.
    """
    if model.weights is None:
        return None
    weights = expanded(model.weights)
    if not Path(weights).is_file():
        raise UserError(f"suite: field 'backbones.{name}.weights' is {weights}, which is no file.")
    if model.pretraining is None:
        return Path(weights)
    asked = model.pretraining
    rate = asked.learning_rate or default_rate(asked.objective, asked.batch_size)
    recipe = Recipe(objective=asked.objective, epochs=asked.epochs, batch_size=asked.batch_size, learning_rate=rate)
    site = Site(data=located(asked, cache), backbone=weights)
    backbone = overlaid(defaults.get("backbone", {}), model.backbone)
    fields = {
        "name": name,
        "backbone": {**backbone, "sha256": sha256_of(Path(weights))},
        "data": asked.data,
        "method": {"name": "full"},
    }
    experiment = schema.parse(Experiment, fields, f"suite: field 'backbones.{name}'")
    # Images and labels by their content. Not the code, whose every change would cost hours of pre-training: the weights
    # are no intermediate result, as all cells pin their digest, and the description beside them names the code.
    images = data_digest(load_site_data(experiment, site, NAME, [NAME]).train)
    data = experiment.data.model_dump(mode="json", include={"task", "classes", "augment"})
    said = [experiment.seed, experiment.backbone.model_dump(mode="json", exclude_defaults=True), data, asdict(recipe)]
    key = json.dumps([*said, images], sort_keys=True)
    path = cache / "backbones" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            pretrain(experiment, site, recipe, path)
    return path
