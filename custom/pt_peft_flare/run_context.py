"""What a component learns from FLARE about the run it is in."""

from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, ProcessType, SiteType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey, is_valid_job_id

from pt_peft import reasons
from pt_peft.errors import UserError, told_as
from pt_peft.experiment.admission import refusals
from pt_peft.experiment.deployment import Deployment, app_of, count_apps, deployment_of, started_at
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.flare_internals import SIMULATION
from pt_peft_flare.job_request import ROOT_CA, Submitter, submitter_of

EXPERIMENT = "experiment.json"
"""File in the job's ``app/config``."""


def is_simulation(fl_ctx: FLContext) -> bool:
    """Whether this process belongs to FLARE's simulator. A job cannot say so: it may have any name."""
    engine = type(fl_ctx.get_engine())
    return f"{engine.__module__}:{engine.__qualname__}" in SIMULATION.names


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
    with told_as(reasons.ExperimentInvalid()):
        return Experiment.read(config_folder(fl_ctx) / EXPERIMENT)


def config_folder(fl_ctx: FLContext) -> Path:
    """The folder ``app/config`` of the job."""
    return Path(fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id()))


def app_folder(fl_ctx: FLContext) -> Path:
    """The folder of the job's app."""
    return config_folder(fl_ctx).parent


def read_site(fl_ctx: FLContext) -> Site:
    """The site's own ``local/site.json``, all defaults if there is none.

    In a simulation without the file its limits are open: there one person owns everything. At the server only the limit
    of memory counts.

    Raises:
        UserError: if the file is not valid.
    """
    path = Path(fl_ctx.get_engine().get_workspace().get_site_config_dir()) / "site.json"
    default = Site(limits=Limits.open()) if is_simulation(fl_ctx) else Site()
    with told_as(reasons.SiteSettings()):
        site = _simulated_site(Site.read(path), fl_ctx) if path.exists() else default
    if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
        site = site.model_copy(update={"limits": site.limits.of_memory()})
    return site


def _simulated_site(site: Site, fl_ctx: FLContext) -> Site:
    """The settings of this site, of those that a simulation's sites share. Raises UserError."""
    if site.sites and not is_simulation(fl_ctx):
        raise UserError(
            "site.json: field 'sites' is for FLARE's simulator, whose sites share one file; a site of a federation has "
            "a file of its own.",
            "sites",
        )
    name = fl_ctx.get_identity_name()
    return site.at(name, started_at(_job_meta(fl_ctx)) or [name])


def check_job(site: Site, fl_ctx: FLContext) -> Experiment:
    """The job's experiment, after `site` was asked about it and about whom else the job is deployed to.

    The submitter's signature covers the app, and so `experiment.json` with its ``federation.min_sites`` and ``sites``;
    FLARE checks it at the site. It does not cover the job's ``meta.json`` as it reaches a site: the submitter signs the
    file, but the server sends its own record of it, to which it has added the clients. The sites and apps of a job are
    therefore as the server says. That keeps a lead from a single site, and no dishonest server.

    Raises:
        OutsideLimits: if the limits of `site` do not allow the job.
        UserError: if there is no valid experiment.
    """
    experiment = read_experiment(fl_ctx)
    for refusal in limit_refusals(experiment, site, fl_ctx):
        raise refusal
    return experiment


def limit_refusals(experiment: Experiment, site: Site, fl_ctx: FLContext) -> list[UserError]:
    """All for which the limits of `site` refuse the job by what it says itself, and by whom it is deployed to."""
    meta = _job_meta(fl_ctx)
    return refusals(experiment, site.limits, None, started_at(meta), count_apps(meta))


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
    return started_at(_job_meta(fl_ctx)) or [fl_ctx.get_identity_name()]


def cloned_from(fl_ctx: FLContext) -> str | None:
    """The id of the job that this one was cloned from (``nvflare job clone``), if it was.

    Raises:
        UserError: if the server names something else than a job.
    """
    earlier = _job_meta(fl_ctx).get(JobMetaKey.CLONED_FROM.value)
    if earlier is not None and not is_valid_job_id(earlier):
        raise UserError(f"the job's cloned_from is {earlier!r}; the id of a job would be right.").told_as(
            reasons.NotAClone()
        )
    return earlier


def continued_dir(fl_ctx: FLContext) -> Path | None:
    """The folder at this site of the job that this one was cloned from; None if there is no such job.

    A clone has the very experiment of the other job: one that has not would be given tensors that were to stay here.

    Raises:
        UserError: if the job is no clone of the one that the server names.
    """
    earlier = cloned_from(fl_ctx)
    if earlier is None:
        return None
    workspace = fl_ctx.get_engine().get_workspace()
    theirs = Path(workspace.get_app_config_dir(earlier)) / EXPERIMENT
    if not theirs.exists():  # the site was not in it
        return None
    if theirs.read_bytes() != (config_folder(fl_ctx) / EXPERIMENT).read_bytes():
        raise UserError(f"the job has another {EXPERIMENT} than {earlier}, which it was cloned from.").told_as(
            reasons.NotAClone()
        )
    return Path(workspace.get_run_dir(earlier))


def _job_meta(fl_ctx: FLContext) -> dict[str, Any]:
    return fl_ctx.get_prop(FLContextKey.JOB_META) or {}
