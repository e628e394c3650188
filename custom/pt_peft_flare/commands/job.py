"""Experiment → job folder: the only writer of job config.

    python -m pt_peft_flare.commands.job EXPERIMENT.json|PRESET --out FOLDER [--workspace DIR] [--bundle] [--set field=value …]
    python -m pt_peft_flare.commands.job --committed

The folder has FLARE's standard layout and runs with ``nvflare simulator``.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pt_peft
import pt_peft_flare
from pt_peft.commands.dispatch import command
from pt_peft.presets import COMMITTED, demo, preset
from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.method import components
from pt_peft.experiment.site import Site

JOBS = Path(__file__).parent.parent / "jobs"

# Payloads travel inside the message instead of in a transfer of their own, and a site that has done its task is soon ready to hear
# of the next (`pt_peft_flare.task_notice`): most of what FLARE adds to a round is waiting.
PAYLOAD = {"np_download_chunk_size": 0}

SERVER = {
    "format_version": 2,
    "server": {"task_request_interval": 0.05},
    **PAYLOAD,
    "workflows": [{"id": "controller", "path": "pt_peft_flare.controller.PeftFedAvg", "args": {}}],
    "components": [
        {"id": "persistor", "path": "pt_peft_flare.persistor.AdapterPersistor", "args": {}},
        {
            "id": "tensorboard",
            "path": "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
            "args": {"events": ["fed.analytix_log_stats"]},
        },
    ],
    "task_data_filters": [],
    "task_result_filters": [],
}

TASKS = ["train", "validate", "submit_model"]

CLIENT = {
    "format_version": 2,
    **PAYLOAD,
    "executors": [{"tasks": TASKS, "executor": {"path": "pt_peft_flare.learner.PeftLearner", "args": {}}}],
    "components": [],
    "task_data_filters": [],
    "task_result_filters": [
        {"tasks": TASKS, "filters": [{"path": "pt_peft_flare.filters.EgressFilter", "args": {}}]},
    ],
}

CUSTOM_README = """\
FLARE takes a job's own code from this folder. The components of this job come from the installed packages `pt_peft` and
`pt_peft_flare`; the folder must not be empty, or else FLARE's simulator lets a job use only FLARE's own classes.
"""


def write_job(experiment: Experiment, folder: Path, bundle: bool = False, installed: bool = False) -> None:
    """Writes the job folder of `experiment` to `folder`, in place of what is there.

    Args:
        bundle: whether the packages are copied into ``app/custom``, for sites that have not installed them.
        installed: whether to leave ``app/custom`` out, for sites that have the packages and let no code come with a job.

    Raises:
        UserError: if the experiment's method or its options are invalid, or `folder` is there and is not a job.
    """
    components(experiment.method)
    if folder.exists():
        # FLARE leaves its signature in the folder of a job that is submitted.
        if any(path.name not in ("meta.json", "app") and not path.name.startswith(".__nvfl") for path in folder.iterdir()) or (
            any(folder.iterdir()) and not (folder / "app" / "config" / "experiment.json").exists()
        ):
            raise UserError(f"--out: {folder} exists and is not a job folder that this command wrote.")
        shutil.rmtree(folder)
    config, custom = folder / "app" / "config", folder / "app" / "custom"
    config.mkdir(parents=True)
    federation = experiment.federation
    participants = ["server", *federation.sites] if federation.sites else ["@ALL"]
    meta = {
        "name": folder.name,
        "resource_spec": {},
        "min_clients": federation.min_sites,
        "deploy_map": {"app": participants},
    }
    _write_json(folder / "meta.json", meta)
    _write_json(config / "config_fed_server.json", SERVER)
    _write_json(config / "config_fed_client.json", CLIENT)
    (config / "experiment.json").write_text(experiment.to_json(), encoding="utf-8")
    if installed:
        return
    custom.mkdir()
    (custom / "README.md").write_text(CUSTOM_README, encoding="utf-8")
    if bundle:
        for package in (pt_peft, pt_peft_flare):
            source = Path(package.__file__).parent
            shutil.copytree(source, custom / source.name, ignore=shutil.ignore_patterns("__pycache__"))


def write_workspace(site: Site, folder: Path) -> None:
    """Writes ``local/site.json``, which FLARE's simulator hands to every site it starts in the workspace `folder`.

    Raises:
        UserError: if another one is there.
    """
    path = folder / "local" / "site.json"
    if path.exists() and Site.read(path) != site:
        raise UserError(f"--workspace: {path} exists and says something else; it is left as it is.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, site.model_dump(mode="json", exclude_defaults=True))


def override(experiment: Experiment, assignments: list[str]) -> Experiment:
    """`experiment` with fields replaced, each given as ``path.to.field=JSON`` (what is not JSON counts as a string).

    Raises:
        UserError: if an assignment has no ``=``, or the result is not a valid experiment.
    """
    fields = experiment.model_dump(mode="json")
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set: '{assignment}' is not of the form field=value.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, last = path.split(".")
        target = fields
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"--set: '{path}' goes through '{parent}', which has no fields.")
        target[last] = value
    return schema.parse(Experiment, fields, "--set")


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pt_peft_flare.commands.job", description=__doc__.splitlines()[0])
    parser.add_argument(
        "experiment", nargs="?", help="an experiment.json, a method's name for its demo, 'ham10000' or 'medmnist:FLAG'"
    )
    parser.add_argument("--out", type=Path, help="the job folder to write")
    parser.add_argument("--bundle", action="store_true", help="copy the packages into app/custom")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field")
    parser.add_argument("--workspace", type=Path, help="also write DIR/local/site.json with the preset's data and weights")
    parser.add_argument("--committed", action="store_true", help="write all job folders of this repository anew")
    options = parser.parse_args(arguments)
    if options.committed:
        for method in COMMITTED:
            write_job(demo(method)[0], JOBS / method)
        return
    if not (options.experiment and options.out):
        parser.error("an experiment and --out are needed, or --committed")
    if Path(options.experiment).is_file():
        experiment, site = Experiment.read(Path(options.experiment)), None
    else:
        experiment, site = preset(options.experiment)
    experiment = override(experiment, options.set)
    write_job(experiment, options.out, options.bundle)
    if options.workspace and site:
        write_workspace(site, options.workspace)
    named, needed = len(experiment.federation.sites), max(2, experiment.federation.min_sites)
    workspace = f" -w {options.workspace}" if options.workspace else ""
    count = f" -t {named}" if named else f" -n {needed} -t {needed}"
    print(f"nvflare simulator {options.out}{workspace}{count}")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
