"""Shows what a job asks of a site: before it runs, from the job's folder, and while it runs, from the site's kit.

Ends with exit code 1 if the site refuses the job.

Example:
    pt-peft show-job my_job --site hospital-1/local/site.json --name hospital-1
    pt-peft show-job ID --kit hospital-1
"""

import argparse
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_peft.errors import OutsideLimits, UserError, unlike_expected
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.admission import component_refusals, counted_refusals, distinct, refusals
from pt_peft.experiment.deployment import app_of, count_apps, deployment_of, sites_of
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.schema import read_json
from pt_peft_flare.job_request import (
    ROOT_CA,
    JobRequest,
    job_request,
    lines,
    submitter_of,
)

MOST_BYTES = 64 * 2**20
"""Of the content of a zip archive."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "job", help="job folder, zip archive of one, the folder of a job that runs in a kit, or with --kit its id"
    )
    parser.add_argument(
        "--kit", type=Path, help="the site's start-up kit: its site.json, its name, its root certificate"
    )
    parser.add_argument("--site", type=Path, help="the site's site.json (default: that of --kit)")
    parser.add_argument("--name", help="the site's name in the federation (default: that of --kit)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints what the job asks. Raises UserError if it is no job of ours, or the site refuses it."""
    with tempfile.TemporaryDirectory() as unpacked:
        asked = _asked(_find(options, Path(unpacked)), options)
    print(json.dumps(asked, indent=2) if options.json else "\n".join(lines(asked)))
    if asked["refused"]:
        whose = "a" if asked["limits"] == "not checked" else "this"
        raise UserError(f"{options.job}: {whose} site refuses this job.")


@dataclass(frozen=True)
class _Found:
    """A job, and the kit that it was found in, if any."""

    folder: Path
    kit: Path | None


def _find(options: argparse.Namespace, unpacked: Path) -> _Found:
    path, kit = Path(options.job), options.kit
    if kit and not (kit / "startup").is_dir():
        raise UserError(f"--kit: {kit} is not a start-up kit: it has no folder 'startup'.")
    if kit and not path.exists():
        path = kit / options.job
    if zipfile.is_zipfile(path):
        path = _unpack(path, unpacked)
    folders = [path, *sorted(one for one in path.glob("*") if one.is_dir())]
    folder = next((one for one in folders if (one / "meta.json").is_file()), None)
    if folder is None:
        raise UserError(f"{options.job}: is no job: it has no meta.json.")
    around = folder.resolve().parent
    return _Found(folder, kit or (around if (around / "startup" / ROOT_CA).is_file() else None))


def _unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        size = sum(one.file_size for one in archive.infolist())
        if size > MOST_BYTES:
            raise UserError(f"{path}: unpacks to {size} bytes; a job has at most {MOST_BYTES}.")
        try:
            archive.extractall(folder)
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise UserError(f"{path}: cannot be unpacked ({error}).") from None
    return folder


def _asked(found: _Found, options: argparse.Namespace) -> JobRequest:
    file = found.folder / "meta.json"
    meta = _meta(file)
    try:
        app, folder, name = _app(found.folder, meta, options.name)
        deployment, sites = deployment_of(meta, app), sites_of(meta, app)
    except (AttributeError, TypeError, LookupError) as error:
        raise UserError(f"{file}: is not as FLARE writes it ({unlike_expected(error)}).") from None
    experiment = Experiment.read(folder / "config" / "experiment.json")
    site, local = _site(found, options)
    limits, apps = site and site.limits, count_apps(meta)
    refused: list[UserError] = [
        *component_refusals(folder, local),
        *refusals(experiment, limits, folder, sites, apps),
        *_model_refusals(experiment, limits or Limits().of_memory()),
    ]
    exchange = images = off = None
    try:
        exchange = _exchange(experiment, site, limits or Limits())
        images = site and _counted(experiment, site, name, sites)
    except UserError as error:
        refused.append(error)
    train = images["train"] if images else None
    if limits and exchange:
        refused += counted_refusals(experiment, limits, exchange, train, name)
    if limits == Limits.open():
        default = Limits()
        off = [*refusals(experiment, default, None, sites, apps), *_model_refusals(experiment, default)]
        if exchange:
            off += counted_refusals(experiment, default, exchange, train, name)
    outside = any(isinstance(one, OutsideLimits) for one in refused)
    return job_request(
        experiment,
        folder,
        name,
        exchange,
        submitter=submitter_of(meta, folder, found.kit and found.kit / "startup" / ROOT_CA),
        deployment=deployment,
        images=images,
        limits="not checked" if site is None else "refused" if outside else "allowed",
        refused=distinct(refused),
        off=None if off is None else distinct(off),
    )


def _model_refusals(experiment: Experiment, limits: Limits) -> list[UserError]:
    """In what the model is outside `limits`, or why there is none."""
    from pt_peft.training.footprint import model_refusals  # imports torch

    found: list[UserError] = []
    if limits == Limits.open():
        return found
    try:
        found += model_refusals(experiment, limits, None, trains=True)
    except UserError as error:
        found.append(error)
    return found


def _site(found: _Found, options: argparse.Namespace) -> tuple[Site | None, Path | None]:
    """The site's settings, and the folder ``local`` that they lie in, if the site is known."""
    if options.site:
        return Site.read(options.site), options.site.parent
    if found.kit is None:
        return None, None
    local = found.kit / "local"
    settings = local / "site.json"
    return Site.read(settings) if settings.exists() else Site(), local


def _meta(path: Path) -> dict[str, Any]:
    meta = read_json(path)
    if not isinstance(meta, dict) or not isinstance(meta.get("deploy_map"), dict):
        raise UserError(f"{path}: has no field 'deploy_map', by which FLARE gives a job to sites.")
    return meta


def _app(job: Path, meta: dict[str, Any], name: str | None) -> tuple[str, Path, str | None]:
    """The app that the site `name` gets, its folder, and the site's name if it is known."""
    apps: list[str] = list(meta["deploy_map"])
    deployed = sorted(job.glob("app_*"))
    if deployed and not any((job / app).is_dir() for app in apps):  # at a site, which has its own alone
        site = deployed[0].name.removeprefix("app_")
        return app_of(meta, site) or apps[0], deployed[0], site
    app = app_of(meta, name) if name else None
    if name and app is None:
        raise UserError(f"{job}: nothing in it goes to {name!r}, by field 'deploy_map' of meta.json.")
    if app is None and len(apps) > 1:
        raise UserError(
            f"{job}: has {len(apps)} apps ({', '.join(apps)}) for different sites; say by --name for which."
        )
    app = app or apps[0]
    return app, job / app, name


def _exchange(experiment: Experiment, site: Site | None, limits: Limits) -> Exchange | None:
    """What travels; None if its model would take more memory than `limits` allow. Raises UserError."""
    from pt_peft_flare.allowed_exchange import cached_exchange

    if cached := site and cached_exchange(experiment, site):
        return cached
    if _model_refusals(experiment, limits.of_memory()):
        return None
    from pt_peft.model.adapted_model import build_model  # imports torch
    from pt_peft.model.planned_exchange import planned_exchange

    return planned_exchange(build_model(experiment.model, None), experiment)


def _counted(experiment: Experiment, site: Site, name: str | None, there: list[str] | None) -> dict[str, int]:
    """The site's images that are used, by split. Raises UserError."""
    from pt_peft.data.items import SPLITS
    from pt_peft.data.sources import site_images

    names = list(experiment.federation.sites) or there or [name or "site-1"]
    found = site_images(experiment, site, name or names[0], names)
    return {split: len(found.items(split)) for split in SPLITS}
