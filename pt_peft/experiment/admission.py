"""All for which a site refuses a job before it builds or counts anything: by the job's files, and by its own limits.

A site asks before its first task, `show-job` and `check-site` before that. FLARE's files are read without FLARE.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.schema import read_json

STATISTICS = "statistics"
"""The task of a stage of statistics (`pt_peft.experiment.statistics`). FLARE has names for the other tasks."""
TASKS = ("train", "validate", "submit_model", STATISTICS)
"""Tasks that a site does in a job that trains or evaluates."""
IMAGE_STATISTICS = "fed_stats"
"""FLARE's name of the task of its federated statistics (`pt_peft.federation.image_statistics`)."""
CLIENT_CONFIG = "config_fed_client.json"
"""What a site's process of a job is made of. FLARE would take other formats too; a site takes this one."""
EGRESS = "pt_peft_flare.filters.EgressFilter"
SITE_CLASSES = ("pt_peft_flare.learner.PeftLearner", EGRESS)
"""All that a job may have built at a site, as kits are made."""
WITHOUT_GUARANTEE = {
    "PercentilePrivacy": (
        "it sets the smallest changes to zero and clips the others, and draws no random number: what is not random has "
        "no finite epsilon"
    ),
    "SVTPrivacy": (
        "its epsilon pays for the choice of values alone; the values cost noise_var each, at its defaults 0.1 for a "
        "tenth of all numbers in every round (an epsilon of 154 a round for the 15364 numbers of job lora_vpt), and "
        "its test lets more values pass than the noise was made for"
    ),
    "ExcludeVars": "it leaves tensors out by name and adds no noise to the others",
}
"""Why a filter of FLARE gives no differential privacy, by class name; read in `nvflare.app_common.filters` of 2.9.0."""
OUTWARD = ("out", "inout")
"""Values of a chain's ``direction`` with which FLARE applies it to what a site sends."""
NOT_CODE = "README.md"
"""File in ``app/custom`` that a job folder has for the simulator's sake."""


@dataclass(frozen=True)
class JobFiles:
    """What is known of a job beside its experiment."""

    app: Path | None = None
    """Folder of the app that a site gets; None for an experiment alone."""
    sites: Collection[str] | None = None
    """Names of the sites that the job is deployed to; None if they are not known yet."""
    apps: int | None = None
    """Number of the job's apps; None if that is not known."""


Component = dict[str, JsonValue]


def refusals(
    experiment: Experiment,
    limits: Limits | None = None,
    app: Path | None = None,
    sites: Collection[str] | None = None,
    apps: int | None = None,
) -> list[UserError]:
    """Why a site refuses a job, the most serious first.

    Args:
        experiment: the job's.
        limits: the site's; None if they are not known.
        app: folder of the job's app; None if there is the experiment alone.
        sites: names of the sites that the job is deployed to; None if they are not known yet.
        apps: number of the job's apps; None if that is not known.
    """
    found: list[UserError] = []
    if app:
        found += filter_refusals(experiment, app / "config")
        if asks_image_statistics(app / "config"):
            found += image_statistics_refusals(experiment, limits)
    if limits:
        found += limits.refusals(experiment)
        if apps is not None:
            found += limits.deployment_refusals(experiment, sites, apps)
    return found


def counted_refusals(
    experiment: Experiment, limits: Limits, exchange: Exchange, train_images: int | None, name: str | None
) -> Iterator[UserError]:
    """Yields why a site refuses a job by what travels, and by how many of its images are used.

    Args:
        experiment: the job's.
        limits: the site's.
        exchange: what travels, at the experiment's own LoRA rank.
        train_images: training images of a round; None if they were not counted.
        name: the site's, on which its rank may depend; None if it is not known.
    """
    own = exchange.at_rank(experiment.federation.lora_ranks.get(name or ""))
    yield from limits.exchange_refusals(experiment, own)
    yield from limits.bytes_refusals(experiment, own, 0)
    yield from limits.stage_refusals(experiment, own)
    if train_images is not None:
        yield from limits.image_refusals(experiment, train_images)


def distinct(found: Iterable[UserError]) -> list[str]:
    """What the errors say, each once, in their order."""
    return [*dict.fromkeys(map(str, found))]


def filter_refusals(experiment: Experiment, config_folder: Path) -> Iterator[UserError]:
    """Yields what is wrong with the filters that a job's config, which the lead has written, puts on results.

    The egress filter must be the last on the result of each task. And no filter of `WITHOUT_GUARANTEE` may stand where
    the section ``privacy`` of `experiment` asks for differential privacy.
    """
    try:
        chains = _chains(_client_config(config_folder))
    except UserError as error:
        yield error.told_as(reasons.Filters())
        return
    for task in (*TASKS, IMAGE_STATISTICS) if asks_image_statistics(config_folder) else TASKS:
        # A pattern may stand for tasks too, and a chain that does not name its tasks for all.
        paths = [
            path for names, filters in chains for path in filters if any(fnmatchcase(task, name) for name in names)
        ]
        if not paths or paths[-1] != EGRESS:
            yield UserError(
                f"config_fed_client: field 'task_result_filters' must end with {EGRESS} for task '{task}', without "
                "which nothing leaves this site."
            ).told_as(reasons.Filters(task=task))
    if experiment.privacy.asked:
        for name in [path.rpartition(".")[2] for _, filters in chains for path in filters]:
            if reason := WITHOUT_GUARANTEE.get(name):
                yield UserError(
                    f"config_fed_client: field 'task_result_filters' has {name}, which is no part of the differential "
                    f"privacy of section privacy: {reason}; without it the job is right."
                ).told_as(reasons.Filters())


def asks_image_statistics(config_folder: Path) -> bool:
    """Whether a job's config has a site count its images. False for a config that cannot be read."""
    try:
        executors: Any = _client_config(config_folder).get("executors", [])
        patterns = [str(task) for one in executors for task in one.get("tasks", ["*"])]
    except (UserError, AttributeError, TypeError):
        return False  # FLARE cannot read it either
    return any(fnmatchcase(IMAGE_STATISTICS, pattern) for pattern in patterns)


def image_statistics_refusals(experiment: Experiment, limits: Limits | None = None) -> Iterator[UserError]:
    """Yields why the images of a site are not counted.

    Args:
        experiment: the job's.
        limits: the site's; None if they are not known.
    """
    promised = {"privacy": experiment.privacy.asked, "encryption": experiment.encryption is not None}
    for field in (name for name, there in promised.items() if there):
        yield UserError(
            f"experiment.json: field '{field}' is set, but counts of images travel without noise and the server reads "
            "them; leave it out of a job for image statistics.",
            field,
        ).told_as(reasons.ExperimentInvalid())
    if limits:
        yield from limits.image_statistics_refusals()


def component_refusals(app: Path, local: Path | None) -> Iterator[UserError]:
    """Yields why FLARE refuses to deploy an app at a site: code that comes with it, or classes that may not be built.

    Args:
        app: folder of the app.
        local: the folder ``local`` of the site's kit; without one the answer is that of a kit as it is made.
    """
    if code := code_of(app):
        if not _takes_code(local):
            more = f" and {len(code) - 1} more" if len(code) > 1 else ""
            yield UserError(f"the job brings code (custom/{code[0]}{more}), which this site does not take.")
        return  # FLARE then lets any class be built
    try:
        config = _client_config(app / "config")
    except UserError:
        return  # `filter_refusals` says so
    allowed = _allowed_classes(local)
    for place, component in components(config):
        name = class_of(component) or ""
        if not any(one == "*" or name == one or name.startswith(f"{one.rstrip('.')}.") for one in allowed):
            yield UserError(f"{CLIENT_CONFIG}, {place}: class {name!r} is not in class_allow_list of the site.")


def code_of(app: Path) -> list[str]:
    """Files of the job's own code, relative to ``custom`` of the app, sorted."""
    custom = app / "custom"
    files = sorted(path.relative_to(custom).as_posix() for path in custom.rglob("*") if path.is_file())
    return [name for name in files if name != NOT_CODE and "__pycache__" not in name]


def components(value: JsonValue, place: str = "") -> Iterator[tuple[str, Component]]:
    """All of a config that names a class, with its place. What hides from this is left to FLARE."""
    if isinstance(value, dict):
        if class_of(value):
            yield place, value
        for key, one in value.items():
            yield from components(one, f"{place}.{key}".strip("."))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from components(one, f"{place}[{number}]")


def class_of(component: Component) -> str | None:
    """The class that a part of a config names, if it does; FLARE finds one by its bare ``name`` too."""
    path = component.get("path", component.get("class_path"))
    if isinstance(path, str) and "." in path:
        return path
    name = component.get("name")
    return name if isinstance(name, str) and "args" in component else None


def _client_config(folder: Path) -> Component:
    """The config of the site's part. Raises UserError."""
    path = folder / CLIENT_CONFIG
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: is not a JSON object.")
    return config


def _chains(config: Component) -> list[tuple[list[str], list[str]]]:
    """Names of tasks, and paths of the classes on their results. Raises UserError."""
    chains: Any = config.get("task_result_filters", [])
    try:
        return [
            ([str(task) for task in chain.get("tasks", ["*"])], [_path_of(one) for one in chain.get("filters", ())])
            for chain in chains
            if chain.get("direction", "out").lower() in OUTWARD
        ]
    except (AttributeError, TypeError) as error:
        raise UserError(f"config_fed_client: field 'task_result_filters' is not as FLARE reads it ({error}).") from None


def _path_of(component: Any) -> str:
    return str(component.get("path") or component.get("class_path") or component.get("name") or "")


def _of_kit(local: Path | None, name: str) -> Component:
    """A file of a kit's, which a copy without ``.default`` replaces; empty if there is none. Raises UserError."""
    for path in (local / name, local / f"{name}.default") if local else ():
        if path.is_file():
            found = read_json(path)
            return found if isinstance(found, dict) else {}
    return {}


def _allowed_classes(local: Path | None) -> list[str]:
    listed = _of_kit(local, "resources.json").get("class_allow_list", [*SITE_CLASSES])
    return [str(one) for one in listed] if isinstance(listed, list) else []


def _takes_code(local: Path | None) -> bool:
    """Whether a site's kit lets anybody bring code."""
    roles = _of_kit(local, "authorization.json").get("permissions")
    rights = roles.values() if isinstance(roles, dict) else ()
    return any((one.get("byoc", "none") if isinstance(one, dict) else one) != "none" for one in rights)
