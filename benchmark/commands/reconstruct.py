"""Attacks what leaves a site to measure whether its images can be rebuilt from it.

Ends with exit code 1 if `--fail-if-found` is given and images were rebuilt.

Example:
    python -m benchmark reconstruct my_job --out reconstruction.json --fail-if-found
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pt_peft.errors import UserError
from pt_peft.files import check_place

if TYPE_CHECKING:
    from benchmark.reconstruction.audit import Subject

VIEWS = ("payload", "adapter")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="JOB_OR_EXPERIMENT",
        help="job folders, experiment.json files, methods' names for their demos, 'ham10000' or 'medmnist:FLAG'",
    )
    parser.add_argument(
        "--ladder", action="store_true", help="audit experiments from one that gives an image away to the shipped ones"
    )
    parser.add_argument("--out", type=Path, help="result file to write (default: none)")
    parser.add_argument(
        "--iterations", type=int, default=300, help="most steps of each search for images (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=120, help="most seconds of each search for images (default: %(default)s)"
    )
    parser.add_argument("--views", nargs="+", choices=VIEWS, help="what is attacked (default: payload adapter)")
    parser.add_argument(
        "--site-file", type=Path, help="site.json that all simulated sites share (default: the preset's own)"
    )
    parser.add_argument(
        "--sites",
        nargs="+",
        help="names of the sites, or their number; the first one's payload is attacked (default: the experiment's "
        "federation.sites, or two)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the starts of searches (default: %(default)s)")
    parser.add_argument("--fail-if-found", action="store_true", help="exit with 1 if images were found")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Writes and prints the audit. Raises UserError if the experiments cannot be audited, or by ``--fail-if-found``."""
    _check(options)
    from tqdm import tqdm

    from benchmark.measurements.results import to_json, write_result
    from benchmark.reconstruction.audit import Design, audit
    from benchmark.reconstruction.table import table

    design = Design(options.iterations, options.seconds, options.seed)
    subjects = _subjects(options)
    result = {}
    for result in tqdm(audit(subjects, design), total=len(subjects), unit="experiment", disable=None):
        if options.out:
            write_result(options.out, result)
    print(to_json(result) if options.json else table(result).removesuffix("\n"), flush=True)
    found = [one["verdict"] for one in result["audits"] if one["found"]]
    if options.fail_if_found and found:
        raise UserError(" ".join(found))


def _check(options: argparse.Namespace) -> None:
    if options.ladder == bool(options.experiments):
        raise UserError("either jobs or --ladder would be right: one names what to audit, the other does.")
    if options.iterations < 1:
        raise UserError(f"--iterations is {options.iterations}; at least 1 would be right.")
    if not options.seconds > 0:
        raise UserError(f"--seconds is {options.seconds:g}; more than 0 would be right.")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed is {options.seed}; a number from 0 to 2147483647 would be right.")
    if options.out:
        if options.out.is_dir():
            raise UserError(f"--out: {options.out} is a folder; the name of a file would be right.")
        check_place(options.out)


def _subjects(options: argparse.Namespace) -> "list[Subject]":
    from benchmark.reconstruction.audit import Subject
    from benchmark.reconstruction.ladder import LADDER, SITES
    from pt_peft.commands.partition import site_names
    from pt_peft.experiment.site import Site
    from pt_peft.presets import open_experiment

    if options.ladder:
        return [rung.subject() for rung in LADDER]
    shared = Site.read(options.site_file) if options.site_file else None
    subjects: list[Subject] = []
    for given in options.experiments:
        experiment, site = open_experiment(given)
        names = site_names(options.sites, experiment.federation.sites or SITES)
        subjects.append(
            Subject(experiment.name, experiment, shared or site, tuple(sorted(names)), tuple(options.views or VIEWS))
        )
    return subjects
