"""FLARE's own privacy filters do not give the privacy that an experiment claims; a site says so instead of training."""

from collections.abc import Iterator
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.utils.config_factory import ConfigFactory

from pt_peft.errors import UserError
from pt_peft.experiment import Experiment

WITHOUT_GUARANTEE = {
    "PercentilePrivacy": (
        "it sets the smallest changes to zero and clips the others, and draws no random number: what is not random has no "
        "finite epsilon"
    ),
    "SVTPrivacy": (
        "its epsilon pays for the choice of values alone; the values cost noise_var each, at its defaults 0.1 for a tenth of "
        "all numbers in every round (an epsilon of 154 a round for the 15364 numbers of job lora_vpt), and its test lets more "
        "values pass than the noise was made for"
    ),
    "ExcludeVars": "it leaves tensors out by name and adds no noise to the others",
}
"""Why, by class name; read in `nvflare.app_common.filters` of 2.9.0."""


def check_filters(experiment: Experiment, config_folder: Path) -> None:
    """Raises UserError if `experiment` has a section ``privacy`` and its job's client config puts one of these filters on what
    leaves the site."""
    if not experiment.privacy.asked:
        return
    for name in _filters(config_folder):
        if reason := WITHOUT_GUARANTEE.get(name):
            raise UserError(
                f"config_fed_client: field 'task_result_filters' has {name}, which is no part of the differential privacy of "
                f"section privacy: {reason}; without it the job is right."
            )


def config_folder(fl_ctx: FLContext) -> Path:
    """That of the job's app."""
    return Path(fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id()))


def _filters(folder: Path) -> Iterator[str]:
    """Class names, whatever format the config has."""
    config = ConfigFactory.load_config("config_fed_client.json", [str(folder)])
    for chain in config.to_dict().get("task_result_filters", ()) if config else ():
        for one in chain.get("filters", ()):
            yield str(one.get("path") or one.get("class_path") or one.get("name") or "").rpartition(".")[2]
