"""What a component learns from FLARE about the run it is in."""

from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, ProcessType, SiteType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey

from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft_flare.job_request import ROOT_CA, Deployment, Submitter, app_of, deployment_of, submitter_of


def is_simulation(fl_ctx: FLContext) -> bool:
    """Whether this process belongs to FLARE's simulator."""
    return fl_ctx.get_job_id() == "simulate_job"


def is_simulated_site(fl_ctx: FLContext) -> bool:
    """Whether this process is a site's in FLARE's simulator."""
    return is_simulation(fl_ctx) and fl_ctx.get_process_type() == ProcessType.CLIENT_JOB


def simulated_server_dir(fl_ctx: FLContext) -> Path:
    """The folder of the simulated server's run, from a site."""
    return run_dir(fl_ctx).parents[1] / SiteType.SERVER / fl_ctx.get_job_id()


def run_dir(fl_ctx: FLContext) -> Path:
    """The folder of this job in this process's workspace."""
    return Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))


def read_experiment(fl_ctx: FLContext) -> Experiment:
    """The job's ``app/config/experiment.json``. Raises UserError."""
    return Experiment.read(config_folder(fl_ctx) / "experiment.json")


def config_folder(fl_ctx: FLContext) -> Path:
    """The folder ``app/config`` of the job."""
    return Path(fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id()))


def read_site(fl_ctx: FLContext) -> Site:
    """The site's own ``local/site.json``, all defaults if there is none. Raises UserError."""
    path = Path(fl_ctx.get_engine().get_workspace().get_site_config_dir()) / "site.json"
    return Site.read(path) if path.exists() else Site()


def submitter(fl_ctx: FLContext) -> Submitter | None:
    """Who has submitted the job."""
    root_ca = Path(fl_ctx.get_engine().get_workspace().get_startup_kit_dir()) / ROOT_CA
    return submitter_of(_job_meta(fl_ctx), config_folder(fl_ctx).parent, root_ca)


def deployment(fl_ctx: FLContext) -> Deployment:
    """To whom the job is deployed."""
    meta = _job_meta(fl_ctx)
    return deployment_of(meta, app_of(meta, fl_ctx.get_identity_name()))


def site_names(fl_ctx: FLContext, experiment: Experiment) -> list[str]:
    """Names of all sites of the job, alike at each of them."""
    if experiment.federation.sites:
        return list(experiment.federation.sites)
    clients: list[dict[str, Any]] = _job_meta(fl_ctx).get(JobMetaKey.JOB_CLIENTS.value, [])
    return sorted(client["name"] for client in clients) or [fl_ctx.get_identity_name()]


def cloned_from(fl_ctx: FLContext) -> str | None:
    """The job that this one was cloned from (``nvflare job clone``), if it was."""
    return _job_meta(fl_ctx).get(JobMetaKey.CLONED_FROM.value)


def _job_meta(fl_ctx: FLContext) -> dict[str, Any]:
    return fl_ctx.get_prop(FLContextKey.JOB_META) or {}
