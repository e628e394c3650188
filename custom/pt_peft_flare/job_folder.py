"""Writes job folders: the only place where the files of a FLARE job are made.

A job folder has FLARE's standard layout; all jobs differ in ``app/config/experiment.json`` and ``meta.json`` alone.
"""

import json
import shutil
from pathlib import Path

import pt_peft
import pt_peft_flare
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.model.method import components

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
        if any(
            path.name not in ("meta.json", "app") and not path.name.startswith(".__nvfl") for path in folder.iterdir()
        ) or (any(folder.iterdir()) and not (folder / "app" / "config" / "experiment.json").exists()):
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


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
