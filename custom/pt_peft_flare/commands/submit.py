"""Submits a job folder without code to sites that have this package installed, and prints the job's id.

Example:
    pt-peft submit my_job --kit lead@consortium.example
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.admin_session import add_kit, connected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_kit(parser)
    parser.add_argument("job", type=Path, help="job folder, such as jobs/lora_vpt")


def run(options: argparse.Namespace) -> None:
    """Submits the job without ``app/custom``, for which FLARE would take it for one with code. Prints its id.

    Raises:
        UserError: if the folder is no job of ours or has code in ``app/custom``, or the server refuses it.
    """
    app = options.job / "app"
    Experiment.read(app / "config" / "experiment.json")
    if code := sorted(path.name for path in (app / "custom").rglob("*.py")):
        raise UserError(
            f"{app / 'custom'}: holds code ({code[0]}), which `nvflare job submit` would bring to sites that allow it; "
            "leave it out for sites that have the package installed."
        )
    with connected(options.kit) as session, tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / options.job.resolve().name
        shutil.copytree(options.job, copy, ignore=shutil.ignore_patterns("custom"))
        print(session.submit_job(str(copy)))
