"""Jobs as recipes of FLARE: ``PeftRecipe(method="lora_vpt").execute(SimEnv(num_clients=2))``."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from nvflare.apis.job_def import ALL_SITES, SERVER_SITE_NAME
from nvflare.app_common.widgets.streaming import AnalyticsReceiver
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.fuel.utils.validation_utils import check_job_name
from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe import ProdEnv, SimEnv
from nvflare.recipe.spec import ExecEnv, Recipe
from pydantic import BaseModel, Field, JsonValue

from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Training
from pt_peft.experiment.site import Site
from pt_peft.model.method import components
from pt_peft.presets import SIMULATED, demo, open_experiment
from pt_peft.schema import Strict
from pt_peft_flare.flare_internals import RECIPES
from pt_peft_flare.job_folder import (
    MESSAGE_SETTINGS,
    MOST_GPUS,
    SERVER_CONFIG,
    settings_of,
    site_file,
    write_job,
    write_workspace,
)

Section = Mapping[str, Any] | BaseModel
"""A section of `experiment.json`: its fields, or the record of them."""
SOURCE = "PeftRecipe"
STREAMERS = {
    **dict.fromkeys(("JobLogStreamer", "JobLogReceiver"), "enable_log_streaming"),
    **dict.fromkeys(("TensorClientStreamer", "TensorServerStreamer"), "enable_tensor_streaming"),
}
"""Classes by which FLARE's recipes send something beside results, and what adds them."""


class PeftRecipe(Recipe):
    """A federation that trains a PEFT method, as a recipe of FLARE.

    What is not given is as in the demo job of the method (``jobs/<method>``): embedded backbone, generated images. It
    makes the job folders of ``pt-peft job``; environments, `Run`, ``--export`` and the helpers of
    `nvflare.recipe` are FLARE's own.

    Example:
        recipe = PeftRecipe(method="lora_vpt", num_rounds=3)
        run = recipe.execute(SimEnv(num_clients=2))
        print(run.get_result())
    """

    framework = FrameworkType.PYTORCH
    """By which FLARE's cross-site evaluation chooses its parts."""

    def __init__(
        self,
        *,
        method: str,
        name: str | None = None,
        method_options: Mapping[str, Any] | None = None,
        backbone: Section | None = None,
        data: Section | None = None,
        partition: Section | None = None,
        num_rounds: int = 3,
        min_clients: int = 2,
        clients: list[str] | None = None,
        training: Section | None = None,
        head: Section | None = None,
        aggregation: Section | None = None,
        server_optimizer: Section | None = None,
        payload: Section | None = None,
        privacy: Section | None = None,
        encryption: Section | None = None,
        key_metric: str = "balanced_accuracy",
        seed: int | None = None,
        site: Section | str | Path | None = None,
        num_gpus: int = 0,
        bundle: bool = False,
        statistics: bool = False,
    ) -> None:
        """Makes the recipe of an experiment. Sections are those of `experiment.json`, and replace the demo's.

        Args:
            method: name of the PEFT method, or several joined by ``+``.
            name: of the run and its job; the method's, if it is not given.
            method_options: options of the method.
            backbone: the Vision Transformer.
            data: images, classes and transforms.
            partition: which images each simulated site has.
            num_rounds: rounds of training; ``federation.rounds``.
            min_clients: sites that a round needs; ``federation.min_sites``.
            clients: names of the sites, ``federation.sites``; those that are there, if they are not given.
            training: local training in a round; fields that are not given are the demo's, with the method's own step
                size.
            head: how the classifier starts and ends.
            aggregation: how the server combines the results of a round.
            server_optimizer: how the server turns that into the next round's start.
            payload: how tensors are encoded while they travel.
            privacy: noise that protects images or sites.
            encryption: of what travels.
            key_metric: validation metric that chooses the best round; ``select_by``.
            seed: every random draw of the run follows from it.
            site: settings that the sites of a simulation share, as fields of `site.json` or its path.
            num_gpus: GPUs that the resource manager of each site must have free for the job.
            bundle: whether the packages are copied into the job, for sites that have not installed them.
            statistics: whether the job counts the images that the experiment would train on, and trains nothing; its
                name ends in ``_statistics``.

        Raises:
            UserError: naming the first field that is wrong.
        """
        if not isinstance(cast(object, method), str):
            raise UserError(f"{SOURCE}: argument 'method' is {method!r}; the name of a method would be right.")
        fields = demo(method)[0].model_dump(mode="json")
        sections: dict[str, Section | None] = {
            "backbone": backbone,
            "data": data,
            "partition": partition,
            "head": head,
            "aggregation": aggregation,
            "server_optimizer": server_optimizer,
            "payload": payload,
            "privacy": privacy,
            "encryption": encryption,
        }
        fields |= {section: _fields(value) for section, value in sections.items() if value is not None}
        fields["name"] = method.replace("+", "-") if name is None else name
        fields["method"] = {"name": method, "options": _fields(method_options or {})}
        own = training.model_dump(exclude_unset=True) if isinstance(training, Training) else _fields(training or {})
        fields["training"] = {**fields["training"], **own} if isinstance(own, dict) else own
        fields["federation"] = {"rounds": num_rounds, "min_sites": min_clients, "sites": clients or []}
        fields["select_by"] = key_metric
        fields["seed"] = fields["seed"] if seed is None else seed
        experiment = schema.parse(Experiment, fields, SOURCE)
        self._take(experiment, site, None, _JobFolder(experiment, num_gpus, bundle, statistics))

    @classmethod
    def from_experiment(
        cls,
        experiment: Experiment | str | Path,
        *,
        site: Section | str | Path | None = None,
        num_gpus: int | None = None,
        bundle: bool = False,
        statistics: bool | None = None,
    ) -> Self:
        """The recipe of an experiment that is there.

        Args:
            experiment: an experiment, a job folder, an `experiment.json`, or the name of a preset as `pt-peft job`
                takes it.
            site: as the constructor takes it; a preset's own, if it is not given.
            num_gpus: as the constructor takes it; those of a job folder, if they are not given.
            bundle: as the constructor takes it.
            statistics: as the constructor takes it; a job folder stays what it is, if it is not given.

        Raises:
            UserError: if the experiment is not valid, or a job folder has more, such as filters.
        """
        known, counts, gpus = Site(limits=SIMULATED), False, 0
        if not isinstance(experiment, Experiment):
            given = str(experiment)
            experiment, known = open_experiment(given)
            counts, gpus = settings_of(given, experiment)
        recipe = cls.__new__(cls)
        counts, gpus = counts if statistics is None else statistics, gpus if num_gpus is None else num_gpus
        folder = _JobFolder(experiment, gpus, bundle, counts)
        recipe._take(experiment, site, None if known == Site(limits=SIMULATED) else known, folder)
        return recipe

    def _take(
        self,
        experiment: Experiment,
        site: Section | str | Path | None,
        preset_site: Site | None,
        folder: "_JobFolder",
    ) -> None:
        RECIPES.require()
        try:
            check_job_name(f"name {experiment.name!r}", experiment.name)
        except ValueError as error:
            raise UserError(f"{SOURCE}: {error}.") from None
        components(experiment.method)
        self.experiment = experiment
        self._site = preset_site if site is None else _site(site)
        self._for_simulation_alone = site is not None
        self._folder = folder
        super().__init__(_Job(folder))

    def process_env(self, env: ExecEnv) -> None:
        """Fits the job to where it runs, and gives a simulation its `site.json`.

        A provisioned federation's sites have the packages installed and take no code, so the job has none.

        Raises:
            UserError: if the recipe has settings of sites that `env` cannot be given, or `env` has other sites.
        """
        self._folder.installed = isinstance(env, ProdEnv) and not self._folder.bundle
        if isinstance(env, SimEnv):
            self._job.clients = [ALL_SITES]  # else FLARE takes those of the last simulation for named ones
            self._check_sites(env)
            self._write_site(Path(env.workspace_root) / self.name)
        elif self._for_simulation_alone:
            raise UserError(
                f"{SOURCE}: settings of sites ('site', set_per_site_config) are for SimEnv; of {type(env).__name__}, "
                "each site has its own local/site.json, which no job writes."
            )

    def _check_sites(self, env: SimEnv) -> None:
        named = self.experiment.federation.sites
        there = env.clients or [f"site-{number}" for number in range(1, env.num_clients + 1)]
        if named and set(named) != set(there):
            raise UserError(
                f"SimEnv: its sites are {', '.join(there)}, but the experiment's federation.sites are "
                f"{', '.join(named)}; SimEnv(clients={list(named)}) would be right."
            )
        fields = self.experiment.model_dump(mode="json")
        fields["federation"]["sites"] = there
        schema.parse(Experiment, fields, "SimEnv")
        if self._site and (unknown := self._site.sites.keys() - there):
            raise UserError(
                f"SimEnv: its sites are {', '.join(there)}, but there are settings of {', '.join(sorted(unknown))}."
            )

    def _write_site(self, workspace: Path) -> None:
        path = site_file(workspace)
        if self._site is not None:
            write_workspace(self._site, workspace, replace=True)
        elif path.exists():
            raise UserError(
                f"{path}: exists, and the recipe says nothing about its sites; give it site={str(path)!r}, or remove "
                "the file."
            )

    def _apply_per_site_config(self, config: dict[str, dict[str, Any]]) -> None:
        """Takes fields of `site.json` for single sites of a simulation, by name (`nvflare.recipe.set_per_site_config`).

        Raises:
            UserError: if they are not valid.
        """
        common = self._site or Site(limits=SIMULATED)
        fields: dict[str, JsonValue] = {**common.model_dump(mode="json"), "sites": {**common.sites, **config}}
        self._site = schema.parse(Site, fields, "set_per_site_config").located(Path.cwd())
        self._for_simulation_alone = True


class _Settings(Strict):
    """Arguments of a recipe that are no fields of the experiment."""

    num_gpus: int = Field(ge=0, le=MOST_GPUS)
    bundle: bool
    statistics: bool


class _JobFolder(FedJobConfig):
    """FLARE's description of a job, which is written as our job folder."""

    def __init__(self, experiment: Experiment, num_gpus: int, bundle: bool, statistics: bool) -> None:
        schema.parse(_Settings, {"num_gpus": num_gpus, "bundle": bundle, "statistics": statistics}, SOURCE)
        name = f"{experiment.name}_statistics" if statistics else experiment.name
        super().__init__(job_name=name, min_clients=experiment.federation.min_sites)
        self.set_app_packages(["pt_peft", "pt_peft_flare"])
        self.bundle = bundle
        self.statistics = statistics
        self.installed = False
        self._experiment = experiment
        self._num_gpus = num_gpus

    def generate_job_config(self, job_root: str) -> None:
        """Writes the folder, with what was added to the recipe, into the folder `job_root`."""
        with tempfile.TemporaryDirectory() as besides:
            super().generate_job_config(besides)
            write_job(
                self._experiment,
                Path(job_root) / self.job_name,
                self.bundle,
                self.installed,
                self._num_gpus,
                Path(besides) / self.job_name / "app",
                self.statistics,
                self.meta_props,
            )


class _Job(FedJob):
    """A job with one app for all, in which FLARE collects what is added to the recipe."""

    def __init__(self, folder: _JobFolder) -> None:
        super().__init__(name=folder.job_name, min_clients=folder.min_clients)
        self.job = folder
        self._trains = not folder.statistics
        self.comp_ids = {"persistor_id": "persistor"}  # where FLARE's helpers look for ids, and put some
        # What every job has anyway: FLARE makes an app when it is given something.
        self.to_server(MESSAGE_SETTINGS)
        self.to_clients(MESSAGE_SETTINGS)
        for one in (*SERVER_CONFIG["workflows"], *SERVER_CONFIG["components"]):
            self._deploy_map[SERVER_SITE_NAME].generate_tracked_id(one["id"])  # so that nothing else gets it

    def to(self, obj: Any, target: str, id: str | None = None, **kwargs: Any) -> Any:
        """Adds to the server or to all sites.

        Raises:
            UserError: for trackers at sites, which would get no curves, what would leave a site beside its results, and
                what a job that counts images cannot use.
        """
        if helper := STREAMERS.get(type(obj).__name__):
            raise UserError(
                f"{helper}: it would let more leave a site than its egress filter and ledger see; a site's worker.log "
                "and log.txt stay there, and tensors travel in one piece; leave it out."
            )
        if not (self._trains or isinstance(obj, dict)):
            raise UserError(
                f"{SOURCE}: with statistics=True the job counts images alone; add {type(obj).__name__} to a recipe "
                "that trains."
            )
        if isinstance(obj, AnalyticsReceiver) and target != SERVER_SITE_NAME:
            raise UserError(
                "add_experiment_tracking: client_side=True gives no curves: a site's scalars go to the server with its "
                "results, whose trackers have those of all sites; leave it out."
            )
        return super().to(obj, target, id, **kwargs)


def _fields(section: Any) -> Any:
    """A section as JSON has it; what is none is left for the schema to name."""
    if isinstance(section, BaseModel):
        return section.model_dump(mode="json")
    return dict(cast(Mapping[str, Any], section)) if isinstance(section, Mapping) else section


def _site(given: Section | str | Path) -> Site:
    if isinstance(given, str | Path):
        return Site.read(Path(given))
    return schema.parse(Site, _fields(given), "site").located(Path.cwd())
