"""To whom a job is deployed, by FLARE's metadata of it (``meta.json``), read without FLARE."""

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

EVERYONE = "@ALL"
SERVER = "server"


class Deployment(TypedDict):
    """To whom a job is deployed, by its metadata."""

    everyone: bool
    """All sites of the federation; else the job names its sites."""
    sites: list[str]
    """Sites that get the same app, as far as they are named or were there when the job started."""
    other_apps: dict[str, list[str]]
    """Sites that get another experiment in the same job, by the app's name."""


def app_of(meta: Mapping[str, Any], site_name: str) -> str | None:
    """The app of a job that a site gets, by FLARE's metadata of the job; None if it gets none."""
    return next((app for app, sites in _apps(meta).items() if site_name in sites or EVERYONE in sites), None)


def deployment_of(meta: Mapping[str, Any], app: str | None) -> Deployment:
    """To whom a job is deployed.

    Args:
        meta: FLARE's metadata of the job. Its ``deploy_map`` is the lead's, its ``job_clients`` the server's.
        app: name of the app that the site gets.
    """
    apps = _apps(meta)
    own = apps.pop(app, []) if app else []
    everyone = EVERYONE in own
    sites = started_at(meta) if everyone else own
    return {
        "everyone": everyone,
        "sites": sorted(set(sites) - {SERVER}),
        "other_apps": {name: sorted(set(others) - {SERVER}) for name, others in apps.items() if set(others) - {SERVER}},
    }


def started_at(meta: Mapping[str, Any]) -> list[str]:
    """Names of the sites at which FLARE has started the job, sorted; none before that."""
    return sorted(client["name"] for client in meta.get("job_clients", []))


def sites_of(meta: Mapping[str, Any], app: str | None) -> list[str] | None:
    """Names of the sites that have the job, or are to get this app; None if that is not known before it starts."""
    return started_at(meta) or deployment_of(meta, app)["sites"] or None


def count_apps(meta: Mapping[str, Any]) -> int:
    """Number of the job's apps."""
    return len(meta.get("deploy_map", {}))


def _apps(meta: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sites that each app is meant for."""
    return {app: [*_names(sites)] for app, sites in meta.get("deploy_map", {}).items()}


Participants = str | Mapping[str, list[str]]


def _names(sites: Participants | list[Participants]) -> Iterable[str]:
    """The names in any of the forms that FLARE takes."""
    for one in sites if isinstance(sites, list) else [sites]:
        names = [one] if isinstance(one, str) else one.get("sites", one.get("targets", []))
        yield from (EVERYONE if name.upper() == EVERYONE else name for name in names)
