"""Attacks a federation's model to measure whether it reveals which images it was trained on.

Example:
    python -m benchmark membership my_job my_private_job --shadows 14 --out membership.json
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pt_peft.errors import UserError
from pt_peft.files import check_place

if TYPE_CHECKING:
    from benchmark.membership.models import Subject

LEAST_SHADOWS = 4
"""Two of each kind for every image, as a variance needs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="JOB_OR_EXPERIMENT",
        help="job folders, experiment.json files, methods' names for their demos, 'ham10000' or 'medmnist:FLAG'",
    )
    parser.add_argument(
        "--shadows",
        type=int,
        default=14,
        help="shadow models that an attack may use, even, at least 4; two more are trained (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="result file to write; the models' outputs are kept beside it, in OUT.models",
    )
    parser.add_argument("--jobs", type=int, default=1, help="models to train at the same time (default: %(default)s)")
    parser.add_argument(
        "--site-file", type=Path, help="site.json that all simulated sites share (default: the preset's own)"
    )
    parser.add_argument(
        "--sites", nargs="+", help="names of the sites, or their number (default: the experiment's federation.sites)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the draw of each model's training images (default: %(default)s)"
    )
    parser.add_argument(
        "--flips", action="store_true", help="let LiRA query the models with the four flips of each image"
    )
    parser.add_argument(
        "--known-seed",
        action="store_true",
        help="train all models with the experiment's seed, which an attacker may know; not if it fixes privacy noise",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Writes and prints the audit. Raises UserError if the experiments cannot be audited."""
    _check(options)
    from benchmark.measurements.results import finish
    from benchmark.membership.audit import audit
    from benchmark.membership.models import Design
    from benchmark.membership.table import table

    subjects = _subjects(options)
    design = Design(options.seed, options.shadows, options.flips, options.known_seed)
    result = audit(subjects, design, options.out.with_name(options.out.name + ".models"), options.jobs)
    finish(options, result, table(result).removesuffix("\n"))


def _check(options: argparse.Namespace) -> None:
    if options.shadows < LEAST_SHADOWS or options.shadows % 2:
        raise UserError(
            f"--shadows is {options.shadows}; an even number, {LEAST_SHADOWS} or more, would be right: LiRA compares "
            "as many models that were trained on an image as were not, and needs two of each."
        )
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; at least 1 would be right.")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed is {options.seed}; a number from 0 to 2147483647 would be right.")
    if options.out.is_dir():
        raise UserError(f"--out: {options.out} is a folder; the name of a file would be right.")
    check_place(options.out)


def _subjects(options: argparse.Namespace) -> "list[Subject]":
    from benchmark.membership.models import Subject
    from pt_peft.commands.partition import site_names
    from pt_peft.experiment.site import Site
    from pt_peft.presets import open_experiment

    opened = [open_experiment(given) for given in options.experiments]
    names = [experiment.name for experiment, _ in opened]
    shared = Site.read(options.site_file) if options.site_file else None
    subjects: list[Subject] = []
    seen: dict[str, str] = {}
    for given, (experiment, site) in zip(options.experiments, opened, strict=True):
        if (before := seen.get(experiment.digest())) is not None:
            raise UserError(f"'{before}' and '{given}' are the same experiment; giving it once would be right.")
        seen[experiment.digest()] = given
        label = experiment.name if names.count(experiment.name) == 1 else given
        sites = tuple(sorted(site_names(options.sites, experiment.federation.sites)))
        subjects.append(Subject(label, experiment, shared or site, sites))
    return subjects
