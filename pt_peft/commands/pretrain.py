"""Trains an experiment's backbone further on a whole data set, and writes it as the start of others."""

import argparse
from pathlib import Path

OBJECTIVES = ("supervised", "mae")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiment", type=Path, help="experiment.json: the backbone, what the images are, augmentation, seed"
    )
    parser.add_argument(
        "--site", type=Path, help="site.json: the backbone's file, the data; its partition is not looked at"
    )
    parser.add_argument(
        "--objective", choices=OBJECTIVES, required=True, help="the labels, or a masked autoencoder's pixels"
    )
    parser.add_argument("--epochs", type=int, required=True, help="passes over the training images")
    parser.add_argument(
        "--out", type=Path, required=True, help=".safetensors to write, described in OUT.json; must not exist"
    )
    parser.add_argument("--batch-size", type=int, help="images a step; the experiment's if not given")
    shown = "peak step size of AdamW; if not given 5e-5, for mae 1.5e-4 for each 256 images a step"
    parser.add_argument("--learning-rate", type=float, help=shown)
    parser.add_argument(
        "--mask-ratio", type=float, default=0.75, help="share of the patches that mae hides (default 0.75)"
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError if it cannot be done as asked; nothing is written then."""
    from pt_peft.experiment.experiment import Experiment
    from pt_peft.experiment.site import Site
    from pt_peft.pretraining.central import pretrain
    from pt_peft.pretraining.recipe import Recipe, default_rate

    experiment = Experiment.read(options.experiment)
    site = Site.read(options.site) if options.site else Site()
    batch_size = experiment.training.batch_size if options.batch_size is None else options.batch_size
    rate = default_rate(options.objective, batch_size) if options.learning_rate is None else options.learning_rate
    recipe = Recipe(
        objective=options.objective,
        epochs=options.epochs,
        batch_size=batch_size,
        learning_rate=rate,
        mask_ratio=options.mask_ratio,
    )
    record = pretrain(experiment, site, recipe, options.out)
    losses, images = record["provenance"]["loss"], record["provenance"]["images"]
    print(f"{options.out}: {recipe.epochs} epochs over {images} images, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    print(f"{options.out}.json: the 'backbone' section of experiments that start from it")
