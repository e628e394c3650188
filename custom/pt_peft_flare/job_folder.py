"""Writes job folders. The files of a FLARE job are made nowhere else.

A job folder has FLARE's standard layout; jobs that train differ in ``app/config/experiment.json`` and ``meta.json``
alone, and so do jobs that count images.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pt_peft
import pt_peft_flare
from pt_peft.errors import UserError
from pt_peft.experiment import admission
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.model.method import components
from pt_peft.schema import read_json

# Most of what FLARE adds to a round is waiting. Payloads therefore travel inside the message instead of in a transfer
# of their own, and a site that has done its task is soon ready to hear of the next (`pt_peft_flare.task_notice`).
MESSAGE_SETTINGS: dict[str, Any] = {"np_download_chunk_size": 0}
TASK_REQUEST_INTERVAL_S = 0.05

METRICS_WRITER = "nvflare.app_common.widgets.metrics_artifact_writer.MetricsArtifactWriter"
"""Writes the metrics of each round as FLARE's own recipes have them written, for what reads their files."""

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
        {"id": "metrics_artifact_writer", "path": METRICS_WRITER, "args": {}},
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

STATISTICS_FILE = "fed_stats.json"
"""In the run's folder at the server: the counts of all sites as FLARE writes statistics."""

STATISTICS_SERVER_CONFIG: dict[str, Any] = {
    **SERVER_CONFIG,
    "workflows": [{"id": "controller", "path": "pt_peft_flare.image_statistics.ImageStatistics", "args": {}}],
    "components": [
        {
            "id": "statistics_writer",
            "path": "nvflare.app_common.statistics.json_stats_file_persistor.JsonStatsFileWriter",
            "args": {"output_path": STATISTICS_FILE},
        }
    ],
}
STATISTICS_CLIENT_CONFIG: dict[str, Any] = {
    **CLIENT_CONFIG,
    "executors": [{**CLIENT_CONFIG["executors"][0], "tasks": [admission.IMAGE_STATISTICS]}],
    "task_result_filters": [
        {**CLIENT_CONFIG["task_result_filters"][0], "tasks": [*TASKS, admission.IMAGE_STATISTICS]},
    ],
}

EACH_SITE = "@default"
"""FLARE's name for what a job takes of each site."""

CUSTOM_README = """\
FLARE takes a job's own code from this folder. The components of this job come from the installed packages `pt_peft` and
`pt_peft_flare`; the folder must not be empty, or else FLARE's simulator lets a job use only FLARE's own classes.
"""

_TRACKING = "nvflare.app_opt.tracking"
STAND_INS = {
    f"{_TRACKING}.tb.tb_receiver.TBAnalyticsReceiver": "pt_peft_flare.tensorboard_receiver.TensorBoardReceiver",
    "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator": "pt_peft_flare.model_locator.AdapterLocator",
    f"{_TRACKING}.mlflow.mlflow_receiver.MLflowReceiver": "pt_peft_flare.mlflow_receiver.MlflowReceiver",
}
"""Classes that FLARE's helpers of recipes add, and ours that take their place and their arguments."""


def write_job(
    experiment: Experiment,
    folder: Path,
    bundle: bool = False,
    installed: bool = False,
    num_gpus: int = 0,
    added: Path | None = None,
    statistics: bool = False,
) -> None:
    """Writes the job folder of `experiment` to `folder`, in place of what is there.

    Args:
        experiment: what the job runs.
        folder: the folder, whose name becomes the job's.
        bundle: whether the packages are copied into ``app/custom``, for sites that have not installed them.
        installed: whether to leave ``app/custom`` out, for sites that have installed the packages and take no code.
        num_gpus: GPUs that the resource manager of each site must have free for the job.
        added: folder of an app, as FLARE writes one, with what the job has besides.
        statistics: whether the job counts the images that the experiment would train on, and trains nothing.

    Raises:
        UserError: if the experiment's method or its options are invalid, `folder` is there and is not a job, or images
            are to be counted and the experiment promises what counts do not keep.
    """
    components(experiment.method)
    for refusal in admission.image_statistics_refusals(experiment) if statistics else ():
        raise refusal
    if folder.exists():
        _check_is_job(folder)
        shutil.rmtree(folder)
    config, custom = folder / "app" / "config", folder / "app" / "custom"
    config.mkdir(parents=True)
    federation = experiment.federation
    meta = {
        "name": folder.name,
        "resource_spec": {EACH_SITE: {"num_of_gpus": num_gpus}} if num_gpus else {},
        "min_clients": federation.min_sites,
        "deploy_map": {"app": ["server", *federation.sites] if federation.sites else ["@ALL"]},
    }
    _write_json(folder / "meta.json", meta)
    server, client = SERVER_CONFIG, CLIENT_CONFIG
    if statistics:
        server, client = STATISTICS_SERVER_CONFIG, STATISTICS_CLIENT_CONFIG
    for name, content in (("config_fed_server.json", server), ("config_fed_client.json", client)):
        besides = cast(dict[str, Any], read_json(added / "config" / name)) if added else {}
        _write_json(config / name, _together(content, besides))
    (config / "experiment.json").write_text(experiment.to_json(), encoding="utf-8")
    if added and (added / "custom").exists():
        shutil.copytree(added / "custom", custom)
    if installed:
        return
    custom.mkdir(exist_ok=True)
    (custom / "README.md").write_text(CUSTOM_README, encoding="utf-8")
    if bundle:
        for package in (pt_peft, pt_peft_flare):
            shutil.copytree(
                package.__path__[0], custom / package.__name__, ignore=shutil.ignore_patterns("__pycache__")
            )


def _together(ours: Mapping[str, Any], besides: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a job with what it has besides.

    A component takes the place of ours of the same class. Filters on results come before ours: the egress filter is
    the last.
    """
    together = {**ours}
    for key, value in besides.items():
        if isinstance(value, list) and key in ours:
            new = [_stood_in(one) for one in cast(list[dict[str, Any]], value)]
            classes = {one["path"] for one in new if "path" in one}
            old = [one for one in ours[key] if one.get("path") not in classes]
            together[key] = [*new, *old] if key == "task_result_filters" else [*old, *new]
        else:
            together[key] = value
    return together


def _stood_in(component: dict[str, Any]) -> dict[str, Any]:
    path = component.get("path", "")
    return {**component, "path": STAND_INS[path]} if path in STAND_INS else component


def write_workspace(site: Site, folder: Path, replace: bool = False) -> None:
    """Writes ``local/site.json``, which FLARE's simulator hands to every site it starts in the workspace `folder`.

    Raises:
        UserError: if another one is there and is not to be replaced.
    """
    path = site_file(folder)
    if not replace and path.exists() and Site.read(path) != site:
        raise UserError(f"--workspace: {path} exists and says something else; it is left as it is.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, site.model_dump(mode="json", exclude_defaults=True))


def site_file(workspace: Path) -> Path:
    """Where a workspace of FLARE's simulator has the settings that its sites share."""
    return workspace / "local" / "site.json"


def _check_is_job(folder: Path) -> None:
    """Raises UserError unless `folder` is empty or a job that `write_job` wrote."""
    # FLARE leaves its signature in the folder of a job that is submitted.
    others = [
        path
        for path in folder.iterdir()
        if path.name not in ("meta.json", "app") and not path.name.startswith(".__nvfl")
    ]
    if others or (any(folder.iterdir()) and not (folder / "app" / "config" / "experiment.json").exists()):
        raise UserError(f"{folder}: exists and is not a job folder that was written here; it is left as it is.")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
