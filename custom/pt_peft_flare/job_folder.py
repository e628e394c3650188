"""Writes job folders. The files of a FLARE job are made nowhere else.

A job folder has FLARE's standard layout; jobs differ in ``app/config/experiment.json`` and ``meta.json`` alone.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pt_peft
import pt_peft_flare
from pt_peft.errors import UserError
from pt_peft.experiment import admission
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.model.method import components

# Most of what FLARE adds to a round is waiting. Payloads therefore travel inside the message instead of in a transfer
# of their own, and a site that has done its task is soon ready to hear of the next (`pt_peft_flare.task_notice`).
MESSAGE_SETTINGS: dict[str, Any] = {"np_download_chunk_size": 0}
TASK_REQUEST_INTERVAL_S = 0.05

SERVER_CONFIG: dict[str, Any] = {
    "format_version": 2,
    "server": {"task_request_interval": TASK_REQUEST_INTERVAL_S},
    **MESSAGE_SETTINGS,
    "workflows": [{"id": "controller", "path": "pt_peft_flare.controller.PeftFedAvg", "args": {}}],
    "components": [
        {"id": "persistor", "path": "pt_peft_flare.persistor.AdapterPersistor", "args": {}},
        {
            "id": "tensorboard",
            "path": "pt_peft_flare.tensorboard_receiver.TensorBoardReceiver",
            "args": {"events": ["fed.analytix_log_stats"]},
        },
    ],
    "task_data_filters": [],
    "task_result_filters": [],
}

TASKS = [*admission.TASKS]

CLIENT_CONFIG: dict[str, Any] = {
    "format_version": 2,
    **MESSAGE_SETTINGS,
    "executors": [{"tasks": TASKS, "executor": {"path": "pt_peft_flare.learner.PeftLearner", "args": {}}}],
    "components": [],
    "task_data_filters": [],
    "task_result_filters": [
        {"tasks": TASKS, "filters": [{"path": admission.EGRESS, "args": {}}]},
    ],
}

CUSTOM_README = """\
FLARE takes a job's own code from this folder. The components of this job come from the installed packages `pt_peft` and
`pt_peft_flare`; the folder must not be empty, or else FLARE's simulator lets a job use only FLARE's own classes.
"""


def write_job(experiment: Experiment, folder: Path, bundle: bool = False, installed: bool = False) -> None:
    """Writes the job folder of `experiment` to `folder`, in place of what is there.

    Args:
        experiment: what the job runs.
        folder: the folder, whose name becomes the job's.
        bundle: whether the packages are copied into ``app/custom``, for sites that have not installed them.
        installed: whether to leave ``app/custom`` out, for sites that have installed the packages and take no code.

    Raises:
        UserError: if the experiment's method or its options are invalid, or `folder` is there and is not a job.
    """
    components(experiment.method)
    if folder.exists():
        _check_is_job(folder)
        shutil.rmtree(folder)
    config, custom = folder / "app" / "config", folder / "app" / "custom"
    config.mkdir(parents=True)
    federation = experiment.federation
    meta = {
        "name": folder.name,
        "resource_spec": {},
        "min_clients": federation.min_sites,
        "deploy_map": {"app": ["server", *federation.sites] if federation.sites else ["@ALL"]},
    }
    _write_json(folder / "meta.json", meta)
    _write_json(config / "config_fed_server.json", SERVER_CONFIG)
    _write_json(config / "config_fed_client.json", CLIENT_CONFIG)
    (config / "experiment.json").write_text(experiment.to_json(), encoding="utf-8")
    if installed:
        return
    custom.mkdir()
    (custom / "README.md").write_text(CUSTOM_README, encoding="utf-8")
    if bundle:
        for package in (pt_peft, pt_peft_flare):
            shutil.copytree(
                package.__path__[0], custom / package.__name__, ignore=shutil.ignore_patterns("__pycache__")
            )


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


def _check_is_job(folder: Path) -> None:
    """Raises UserError unless `folder` is empty or a job that `write_job` wrote."""
    # FLARE leaves its signature in the folder of a job that is submitted.
    others = [
        path
        for path in folder.iterdir()
        if path.name not in ("meta.json", "app") and not path.name.startswith(".__nvfl")
    ]
    if others or (any(folder.iterdir()) and not (folder / "app" / "config" / "experiment.json").exists()):
        raise UserError(f"--out: {folder} exists and is not a job folder that this command wrote.")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
