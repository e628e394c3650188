"""Shows what a job asks of a site: before it runs, from the job's folder, and while it runs, from the site's kit.

Example:
    python -m pt_peft_flare show-job my_job --site hospital-1/local/site.json --name hospital-1
    python -m pt_peft_flare show-job ID --kit hospital-1
"""

import argparse
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_peft.errors import UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft_flare.allowed_exchange import cached_exchange
from pt_peft_flare.job_request import (
    ROOT_CA,
    Deployment,
    JobRequest,
    app_of,
    deployment_of,
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
    """Prints what the job asks. Raises UserError if it is no job of ours, or the site's data are not as they should."""
    with tempfile.TemporaryDirectory() as unpacked:
        asked = _asked(_find(options, Path(unpacked)), options)
    print(json.dumps(asked, indent=2) if options.json else "\n".join(lines(asked)))


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
        deployment = deployment_of(meta, app)
    except (AttributeError, TypeError, LookupError) as error:
        raise UserError(f"{file}: is not as FLARE writes it ({error!r}).") from None
    experiment = Experiment.read(folder / "config" / "experiment.json")
    site = _site(found, options)
    exchange, images, refused = _computed(experiment, site, name, meta, deployment)
    return job_request(
        experiment,
        name,
        exchange,
        submitter=submitter_of(meta, folder, found.kit and found.kit / "startup" / ROOT_CA),
        deployment=deployment,
        images=images,
        refused=refused,
    )


def _site(found: _Found, options: argparse.Namespace) -> Site | None:
    if options.site:
        return Site.read(options.site)
    if found.kit is None:
        return None
    settings = found.kit / "local" / "site.json"
    return Site.read(settings) if settings.exists() else Site()


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("deploy_map"), dict):  # pyright: ignore[reportUnknownMemberType]
        raise UserError(f"{path}: has no field 'deploy_map', by which FLARE gives a job to sites.")
    return meta  # pyright: ignore[reportUnknownVariableType]


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


def _computed(
    experiment: Experiment, site: Site | None, name: str | None, meta: dict[str, Any], deployment: Deployment
) -> tuple[Exchange | None, dict[str, int] | None, str | None]:
    """What travels, how many images of the site are used, and why the site refuses the job."""
    exchange = images = None
    there = sorted(one["name"] for one in meta.get("job_clients", [])) or deployment["sites"]
    try:
        if site:
            site.limits.check(experiment)
            if there:
                site.limits.check_deployment(experiment, there, len(meta["deploy_map"]))
        exchange = (site and cached_exchange(experiment, site)) or _planned(experiment)
        if site:
            from pt_peft.data.items import SPLITS
            from pt_peft.data.sources import site_images

            own = exchange.at_rank(experiment.federation.lora_ranks.get(name or ""))
            site.limits.check_exchange(experiment, own)
            site.limits.check_bytes(experiment, own, 0)
            names = list(experiment.federation.sites) or there or [name or "site-1"]
            found = site_images(experiment, site, name or names[0], names)
            images = {split: len(found.items(split)) for split in SPLITS}
            site.limits.check_images(experiment, images["train"])
    except UserError as error:
        return exchange, images, str(error)
    return exchange, images, None


def _planned(experiment: Experiment) -> Exchange:
    from pt_peft.model.adapted_model import build_model  # imports torch
    from pt_peft.model.planned_exchange import planned_exchange

    return planned_exchange(build_model(experiment.model, None), experiment)
