"""Trains an experiment's backbone further on a whole data set, in one place, as a start for other experiments.

The output is a safetensors file under timm's keys and, beside it, the ``backbone`` section for experiments that start
from it. The experiment's partition is not used.

Example:
    pt-peft pretrain experiment.json --site site.json --objective mae --epochs 100 --out lesions.safetensors
"""

import argparse
from pathlib import Path

OBJECTIVES = ("supervised", "mae")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiment", type=Path, help="experiment.json, for the backbone, the images, augmentation and seed"
    )
    parser.add_argument(
        "--site",
        type=Path,
        help="site.json, for the backbone's file and the data (default: the embedded backbone and images)",
    )
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        required=True,
        help="supervised: predict the labels; mae: reconstruct masked patches (masked autoencoder)",
    )
    parser.add_argument("--epochs", type=int, required=True, help="passes over the training images, 1 to 100000")
    parser.add_argument(
        "--out", type=Path, required=True, help=".safetensors file to write, described in OUT.json; must not exist"
    )
    parser.add_argument(
        "--batch-size", type=int, help="images a step, 1 to 65536 (default: the experiment's training.batch_size)"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        help="peak step size of AdamW, at most 10 (default: 5e-5; for mae 1.5e-4 for each 256 images a step)",
    )
    parser.add_argument(
        "--mask-ratio",
        type=float,
        default=0.75,
        help="share of the patches that mae hides, between 0 and 1 (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Trains and writes the backbone. Raises UserError if it cannot be done as asked; nothing is written then."""
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
