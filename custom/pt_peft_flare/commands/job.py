"""Writes the job folder of an experiment or a preset, and prints the command that simulates or submits it.

The folder has FLARE's standard layout: simulator and POC take it, and with --installed a provisioned federation, whose
sites have the packages and take no code.

Example:
    pt-peft job lora_vpt --out my_job --set federation.rounds=10
"""

import argparse
import shlex
import sys
from pathlib import Path

from pt_peft.errors import UserError

MOST_SITES = 100
"""More sites FLARE's simulator does not start unless ``-m`` says how many there may be."""
STATISTICS = "statistics"
"""The committed job that counts images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiment",
        nargs="?",
        help="a job folder, which stays what it is, an experiment.json, a method's name for its demo, 'ham10000', "
        "'ridge_probe' or 'medmnist:FLAG'; not with --committed",
    )
    parser.add_argument("--out", type=Path, help="job folder to write")
    code = parser.add_mutually_exclusive_group()
    code.add_argument("--bundle", action="store_true", help="copy the packages into app/custom, for sites without them")
    code.add_argument(
        "--installed",
        action="store_true",
        help="leave app/custom out, for sites that have the packages installed and take no code, as by our kits",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="count each site's images by split, class, size, brightness and contrast, and train nothing",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        metavar="N",
        help="GPUs that each site must have free for the job (default: those of the job folder, or 0)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="replace a field of the experiment, such as federation.rounds=10; may be repeated",
    )
    parser.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="also write DIR/local/site.json with the preset's data and weights",
    )
    parser.add_argument(
        "--committed",
        type=Path,
        metavar="DIR",
        help="write the demo job of each method of the paper, ridge_probe and statistics into DIR instead, as in jobs/",
    )


def run(options: argparse.Namespace) -> None:
    """Writes the job. Raises UserError if the experiment is invalid or a folder cannot be written."""
    from pt_peft.experiment.site import Site
    from pt_peft.presets import committed_jobs, demo, open_experiment, override
    from pt_peft_flare.job_folder import MOST_GPUS, settings_of, write_job, write_workspace

    if options.committed:
        for name, experiment in committed_jobs().items():
            write_job(experiment, options.committed / name)
        write_job(demo("lora_vpt")[0], options.committed / STATISTICS, statistics=True)
        return
    if options.num_gpus is not None and not 0 <= options.num_gpus <= MOST_GPUS:
        raise UserError(f"--num-gpus: is {options.num_gpus}; a number of GPUs from 0 to {MOST_GPUS} would be right.")
    if not (options.experiment and options.out):
        raise UserError("job: an experiment and --out are needed, or --committed.")
    experiment, site = open_experiment(options.experiment)
    counts, gpus = settings_of(options.experiment, experiment)
    experiment = override(experiment, options.set)
    write_job(
        experiment,
        options.out,
        options.bundle,
        options.installed,
        num_gpus=gpus if options.num_gpus is None else options.num_gpus,
        statistics=counts or options.statistics,
    )
    if options.workspace and site != Site(limits=site.limits):
        write_workspace(site, options.workspace)
    if options.installed:
        print(shlex.join(["nvflare", "job", "submit", "-j", str(options.out)]))
        return
    named, needed = len(experiment.federation.sites), max(2, experiment.federation.min_sites)
    workspace = ["-w", str(options.workspace)] if options.workspace else []
    count = ["-t", str(named)] if named else ["-n", str(needed), "-t", str(needed)]
    if (sites := named or needed) > MOST_SITES:
        count += ["-m", str(sites)]
    print(shlex.join(["nvflare", "simulator", str(options.out), *workspace, *count]))
    if experiment.data.source != "lesions" and not workspace:
        print(
            "note: the sites need a site.json that says what their images are: put it into DIR/local and add -w DIR; "
            "relative paths in it start at DIR/SITE/local, so absolute ones are best.",
            file=sys.stderr,
        )
