"""Says what a job should be for the sites that want to join it, from their ``check-site --json`` reports.

Objective, method and rounds, each with the measurement behind it, or that there is none; what the job costs each site;
and what noise costs in epsilon. Ends with exit code 1 if a site cannot join the job as it is.

Example:
    pt-peft advise my_job hospital-1.json hospital-2.json hospital-3.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pt_peft.errors import UserError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "job", help="a job folder, an experiment.json, or the name of a preset, as the sites checked it"
    )
    parser.add_argument("reports", type=Path, nargs="+", help="what check-site --json printed at each site")
    parser.add_argument(
        "--measured",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="measurements of your own, as `python -m benchmark summary` writes them; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the advice as JSON instead of text")


def run(options: argparse.Namespace) -> None:
    """Prints the advice. Raises UserError for files that do not fit, and after it if a site cannot join."""
    from pt_peft.commands.advice import advice, lines, read_reports
    from pt_peft.commands.measured import read_measurements
    from pt_peft.presets import open_experiment

    experiment, _ = open_experiment(options.job)
    reports = read_reports(options.reports, experiment)
    found = advice(experiment, reports, read_measurements(options.measured))
    text = map(one_line, lines(found))
    print(json.dumps(found.model_dump(mode="json"), indent=1) if options.json else "\n".join(text))
    if refusing := [site.site for site in found.sites if site.errors]:
        raise UserError(
            f"{', '.join(refusing)}: cannot join '{experiment.name}' as it is; check-site there says what to mend."
        )
