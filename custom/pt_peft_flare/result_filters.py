"""A site checks the filters that a job's config, which the lead has written, puts on its results, before it trains."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nvflare.fuel.utils.config_factory import ConfigFactory

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment

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

EGRESS = "pt_peft_flare.filters.EgressFilter"


def check_egress(tasks: Iterable[str], config_folder: Path) -> None:
    """Raises UserError unless the last filter on the result of each of `tasks` is the egress filter."""
    chains = _chains(config_folder)
    for task in tasks:
        # A pattern may stand for tasks too, and a chain that does not name its tasks for all.
        paths = [
            path for names, filters in chains for path in filters if any(fnmatchcase(task, name) for name in names)
        ]
        if not paths or paths[-1] != EGRESS:
            raise UserError(
                f"config_fed_client: field 'task_result_filters' must end with {EGRESS} for task '{task}', without "
                "which nothing leaves this site."
            ).told_as(reasons.Filters(task=task))


def check_privacy_filters(experiment: Experiment, config_folder: Path) -> None:
    """Checks that no filter of FLARE stands where the differential privacy of an experiment is meant.

    Raises:
        UserError: if `experiment` has a section ``privacy`` and its job's client config puts a filter of
            `WITHOUT_GUARANTEE` on what leaves the site.
    """
    if not experiment.privacy.asked:
        return
    for name in [path.rpartition(".")[2] for _, filters in _chains(config_folder) for path in filters]:
        if reason := WITHOUT_GUARANTEE.get(name):
            raise UserError(
                f"config_fed_client: field 'task_result_filters' has {name}, which is no part of the differential "
                f"privacy of section privacy: {reason}; without it the job is right."
            ).told_as(reasons.Filters())


def _chains(folder: Path) -> list[tuple[list[str], list[str]]]:
    """Names of tasks and paths of the classes on their results, in any of FLARE's formats of a config."""
    config = ConfigFactory.load_config("config_fed_client.json", [str(folder)])
    chains: list[dict[str, Any]] = config.to_dict().get("task_result_filters", []) if config else []
    return [
        ([str(task) for task in chain.get("tasks", ["*"])], [_path_of(one) for one in chain.get("filters", ())])
        for chain in chains
    ]


def _path_of(component: dict[str, Any]) -> str:
    return str(component.get("path") or component.get("class_path") or component.get("name") or "")
