"""Writes job folders. The files of a FLARE job are made nowhere else.

A job folder has FLARE's standard layout; jobs that train differ in ``app/config/experiment.json`` and ``meta.json``
alone, and so do jobs that count images.
"""

import json
import shutil
import tempfile
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

META, EXPERIMENT = "meta.json", "app/config/experiment.json"
SERVER_FILE, CLIENT_FILE = "app/config/config_fed_server.json", "app/config/config_fed_client.json"
README = "app/custom/README.md"
BUNDLED = tuple(f"app/custom/{package.__name__}/" for package in (pt_peft, pt_peft_flare))

EACH_SITE, GPUS = "@default", "num_of_gpus"
"""FLARE's names for what a job takes of each site."""
MOST_GPUS = 1024
"""More GPUs no site has: a typing error would make a job wait for ever."""

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
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes the job folder of `experiment` to `folder`, in place of a job that is there.

    Args:
        experiment: what the job runs.
        folder: the folder, whose name becomes the job's.
        bundle: whether the packages are copied into ``app/custom``, for sites that have not installed them.
        installed: whether to leave ``app/custom`` out, for sites that have installed the packages and take no code.
        num_gpus: GPUs that the resource manager of each site must have free for the job.
        added: folder of an app, as FLARE writes one, with what the job has besides.
        statistics: whether the job counts the images that the experiment would train on, and trains nothing.
        meta: what `meta.json` says besides.

    Raises:
        UserError: if the experiment's method or its options are invalid, `folder` is there and is not a job or has
            files that would be lost, it cannot be written, or images are to be counted and the experiment promises
            what counts do not keep. What was there is then as it was.
    """
    components(experiment.method)
    for refusal in admission.image_statistics_refusals(experiment) if statistics else ():
        raise refusal
    folder = folder.resolve()  # '.' has no name
    _check_is_job(folder)
    files = _files(experiment, folder.name, num_gpus, statistics)
    files[META] = {**files[META], **(meta or {})}
    for name in (SERVER_FILE, CLIENT_FILE):
        besides = cast(dict[str, Any], read_json(added / "config" / Path(name).name)) if added else {}
        files[name] = _together(files[name], besides)
    try:
        kept = _files_besides(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, which stays itself: a shell may be in it.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as beside:
            new, old = Path(beside) / "new", Path(beside) / "old"
            (new / "app" / "config").mkdir(parents=True)
            old.mkdir()
            for name, content in files.items():
                _write_json(new / name, content)
            (new / EXPERIMENT).write_text(experiment.to_json(), encoding="utf-8")
            _write_code(new / "app" / "custom", added, bundle, installed)
            if lost := [name for name in kept if not (new / name).exists()]:
                raise UserError(
                    f"{folder}: has {_some(lost)}, which the job that would take its place has not; move what you "
                    "need, or choose another folder."
                )
            for path in [one for one in folder.iterdir() if one != Path(beside)]:
                path.rename(old / path.name)
            for path in [*new.iterdir()]:
                path.rename(folder / path.name)
    except OSError as error:
        reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror
        raise UserError(f"{folder}: cannot be written ({reason}).") from None


def settings_of(given: str, experiment: Experiment) -> tuple[bool, int]:
    """What a job says that its experiment does not.

    Args:
        given: a job folder; of anything else there is nothing to say.
        experiment: the job's.

    Returns:
        Whether the job counts images, and the GPUs that each site must have free for it.

    Raises:
        UserError: if the job has more, such as filters, which would be lost in a job of the same experiment.
    """
    folder = Path(given)
    if not folder.is_dir():
        return False, 0
    found = {name: read_json(folder / name) for name in (META, SERVER_FILE, CLIENT_FILE)}
    statistics = found[SERVER_FILE] == STATISTICS_SERVER_CONFIG
    meta = cast(Any, found[META])
    try:
        name, num_gpus = meta["name"], meta.get("resource_spec", {}).get(EACH_SITE, {}).get(GPUS, 0)
    except (AttributeError, KeyError, TypeError):
        name, num_gpus = folder.name, 0
    num_gpus = num_gpus if type(num_gpus) is int and 0 <= num_gpus <= MOST_GPUS else 0
    expected = _files(experiment, name, num_gpus, statistics)
    if more := [*(name for name, content in found.items() if content != expected[name]), *_files_besides(folder)]:
        raise UserError(
            f"{folder}: {_some(more)} says more than the experiment, which would be lost; give {folder / EXPERIMENT} "
            "to take the experiment alone."
        )
    return statistics, num_gpus


def _files(experiment: Experiment, name: str, num_gpus: int, statistics: bool) -> dict[str, Any]:
    """The JSON files of a job by their paths in its folder, but for the experiment."""
    federation = experiment.federation
    return {
        META: {
            "name": name,
            "resource_spec": {EACH_SITE: {GPUS: num_gpus}} if num_gpus else {},
            "min_clients": federation.min_sites,
            "deploy_map": {"app": ["server", *federation.sites] if federation.sites else ["@ALL"]},
        },
        SERVER_FILE: STATISTICS_SERVER_CONFIG if statistics else SERVER_CONFIG,
        CLIENT_FILE: STATISTICS_CLIENT_CONFIG if statistics else CLIENT_CONFIG,
    }


def _write_code(custom: Path, added: Path | None, bundle: bool, installed: bool) -> None:
    if added and (added / "custom").exists():
        shutil.copytree(added / "custom", custom)
    if installed:
        return
    custom.mkdir(exist_ok=True)
    (custom / Path(README).name).write_text(CUSTOM_README, encoding="utf-8")
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
    """Raises UserError unless `folder` is not there, or empty, or a job."""
    if folder.exists() and not (folder / EXPERIMENT).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not a job folder that was written here; it is left as it is.")


def _files_besides(folder: Path) -> list[str]:
    """The paths in a job's folder of all files that not every job has: somebody has put them there."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    # FLARE leaves its signature in the folders of a job that is submitted.
    names = [path.relative_to(folder).as_posix() for path in paths if not path.name.startswith(".__nvfl")]
    ours = (META, EXPERIMENT, SERVER_FILE, CLIENT_FILE, README)
    return [name for name in names if name not in ours and not name.startswith(BUNDLED)]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
