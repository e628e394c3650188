"""Supervised pre-training: all tensors of the backbone, under a head that is thrown away."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from pt_peft import schema
from pt_peft.data.site_data import ImageSplit
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.vit import ViT
from pt_peft.pretraining.recipe import Recipe
from pt_peft.training.trainer import LocalTrainer


def train_classifier(
    experiment: Experiment,
    recipe: Recipe,
    weights: Path,
    split: ImageSplit,
    device: torch.device,
    on_step: Callable[[torch.Tensor], None],
) -> ViT:
    """Trains a backbone as the only site of a federation of one round does with the method ``full``.

    Args:
        experiment: its backbone, loss, augmentation, precision, step size of the head, and seed.
        recipe: the options.
        weights: where the backbone starts.
        split: the labelled images.
        device: where the model computes.
        on_step: called with the loss of each step.

    Returns:
        The backbone, with its head.

    Raises:
        UserError: if the backbone cannot be built, or the loss stops being finite.
    """
    fields = json.loads(experiment.to_json())
    training = {"local_epochs": recipe.epochs, "batch_size": recipe.batch_size, "learning_rate": recipe.learning_rate}
    fields["training"].update(training, schedule="cosine", warmup_rounds=0)
    fields["method"] = {"name": "full"}
    fields["federation"] = {"rounds": 1}
    trainer = LocalTrainer(schema.parse(Experiment, fields, "pretrain"), weights, device)
    trainer.train("pretrain", split, trainer.initial, 0, on_step)
    return trainer.model.module
