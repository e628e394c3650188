"""What a job asks of a site, for the site's people: before the job runs, while it runs, and in the ledger. No torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from pydantic import JsonValue

from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.flare_internals import JOB_SIGNATURES
from pt_peft_flare.messages import one_line

SHOWN_TENSORS = 6
ROOT_CA = "rootCA.pem"
"""The federation's root certificate in the folder ``startup`` of a kit."""
EVERYONE = "@ALL"
SERVER = "server"


class Submitter(TypedDict):
    """Who has submitted a job."""

    name: str
    org: str
    role: str
    signed: bool
    """Whether this person's key has signed what the site has of the job; else the server says so."""


class Deployment(TypedDict):
    """To whom a job is deployed, by its metadata."""

    everyone: bool
    """All sites of the federation; else the job names its sites."""
    sites: list[str]
    """Sites that get the same app, as far as they are named or were there when the job started."""
    other_apps: dict[str, list[str]]
    """Sites that get another experiment in the same job, by the app's name."""


class ExchangeAsked(TypedDict):
    """What travels in a round."""

    tensors: list[str]
    """Names of the tensors that a site sends in the first round."""
    parameters: int
    """Their values."""
    bytes_up: int
    """Bytes that a site sends in a round, of tensors or at most of their ciphertexts."""
    bytes_down: int
    """Bytes that a site is sent in a round."""
    alike: bool
    """Whether each round exchanges the same tensors."""


class JobRequest(TypedDict):
    """What a job asks."""

    experiment: str
    digest: str
    """SHA-256 of the experiment: two jobs with equal digests ask the same."""
    submitter: Submitter | None
    """None before the job is submitted."""
    deployment: Deployment | None
    """None if that is not known."""
    rounds: int
    min_sites: int
    method: dict[str, JsonValue]
    backbone: dict[str, JsonValue]
    exchange: ExchangeAsked | None
    """None if the job is refused before that is computed."""
    data: dict[str, JsonValue]
    """Task, classes, source, and the most images of each split that are used."""
    images: dict[str, int] | None
    """Images of the site that are used, by split; None if they were not counted."""
    training: dict[str, JsonValue]
    privacy: dict[str, JsonValue] | None
    encryption: dict[str, JsonValue] | None
    aggregation: dict[str, JsonValue]
    refused: str | None
    """Why the site refuses the job."""


def job_request(
    experiment: Experiment,
    site_name: str | None,
    exchange: Exchange | None = None,
    *,
    submitter: Submitter | None = None,
    deployment: Deployment | None = None,
    images: dict[str, int] | None = None,
    refused: str | None = None,
) -> JobRequest:
    """Puts together what is known of a job.

    Args:
        experiment: the job's.
        site_name: the site that is asked, on which the LoRA rank may depend.
        exchange: what travels, at the experiment's own rank.
        submitter: who has submitted it.
        deployment: to whom it is deployed.
        images: how many images of the site are used, by split.
        refused: why the site refuses it.
    """
    data, federation = experiment.data, experiment.federation
    most = data.images_per_site if data.source == "lesions" else data.max_images_per_site
    if exchange is not None:
        exchange = exchange.at_rank(federation.lora_ranks.get(site_name or ""))
    return {
        "experiment": experiment.name,
        "digest": experiment.digest(),
        "submitter": submitter,
        "deployment": deployment,
        "rounds": federation.rounds,
        "min_sites": federation.min_sites,
        "method": experiment.method.model_dump(mode="json"),
        "backbone": experiment.backbone.model_dump(mode="json", include={"name", "kwargs", "image_size", "sha256"}),
        "exchange": exchange and _exchange_asked(experiment, exchange),
        "data": {"source": data.source, "task": data.task, "classes": [*data.classes], "most_images": {**most}},
        "images": images,
        "training": experiment.training.model_dump(mode="json"),
        "privacy": experiment.privacy.model_dump(mode="json") if experiment.privacy.asked else None,
        "encryption": experiment.encryption and experiment.encryption.model_dump(mode="json"),
        "aggregation": experiment.aggregation.model_dump(mode="json"),
        "refused": refused,
    }


def _exchange_asked(experiment: Experiment, exchange: Exchange) -> ExchangeAsked:
    first_up, encrypted = exchange.up(0), experiment.encryption is not None
    return {
        "tensors": sorted(first_up),
        "parameters": sum(spec.size for spec in first_up.values()),
        "bytes_up": round_bytes(exchange, experiment.payload, 0, encrypted=encrypted).up,
        "bytes_down": round_bytes(exchange, experiment.payload, 1, encrypted=encrypted).down,
        "alike": not exchange.rotating,
    }


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
    sites = [one["name"] for one in meta.get("job_clients", [])] if everyone else own
    return {
        "everyone": everyone,
        "sites": sorted(set(sites) - {SERVER}),
        "other_apps": {name: sorted(set(others) - {SERVER}) for name, others in apps.items() if set(others) - {SERVER}},
    }


def _apps(meta: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sites that each app is meant for."""
    return {app: [*_names(sites)] for app, sites in meta.get("deploy_map", {}).items()}


Participants = str | Mapping[str, list[str]]


def _names(sites: Participants | list[Participants]) -> Iterable[str]:
    """The names in any of the forms that FLARE takes."""
    for one in sites if isinstance(sites, list) else [sites]:
        names = [one] if isinstance(one, str) else one.get("sites", one.get("targets", []))
        yield from (EVERYONE if name.upper() == EVERYONE else name for name in names)


def submitter_of(meta: Mapping[str, Any], app_folder: Path, root_ca: Path | None) -> Submitter | None:
    """Who has submitted a job; None if it has not been submitted.

    Args:
        meta: FLARE's metadata of the job.
        app_folder: the app as the site has it, with FLARE's signatures.
        root_ca: the federation's root certificate, without which no signature can be checked.
    """
    if root_ca and root_ca.exists() and JOB_SIGNATURES.usable():
        from nvflare.lighter.utils import verify_folder_signature_and_get_signers

        try:
            verified, signers = verify_folder_signature_and_get_signers(str(app_folder), str(root_ca))
        except Exception:  # whatever is wrong with it: it is not signed
            verified, signers = False, []
        if verified and len(signers) == 1:
            name, org, role = signers[0]
            return {"name": name, "org": org, "role": role, "signed": True}
    if not (name := meta.get("submitter_name")):
        return None
    return {
        "name": name,
        "org": meta.get("submitter_org", ""),
        "role": meta.get("submitter_role", ""),
        "signed": False,
    }


def lines(request: JobRequest) -> list[str]:
    """`request` for a person."""
    return [f"{name:12}{one_line(text)}" for name, text in _rows(request)]


def _rows(asked: JobRequest) -> Iterable[tuple[str, str]]:
    yield "job", f"{asked['experiment']} (digest {asked['digest'][:12]})"
    if one := asked["submitter"]:
        signed = "signed by this person's key" if one["signed"] else "not signed; the server says so"
        yield "from", f"{one['name']}, {one['role']} of {one['org']} ({signed})"
    else:
        yield "from", "not submitted yet"
    if asked["deployment"]:
        yield from _deployment_rows(asked["deployment"])
    backbone = asked["backbone"]
    yield "method", f"{asked['method']['name']}, head {asked['method']['head']}; options {asked['method']['options']}"
    yield "backbone", f"{backbone['name']} at {backbone['image_size']} pixels, weights {str(backbone['sha256'])[:12]}…"
    if travels := asked["exchange"]:
        names, encrypted = travels["tensors"], ", encrypted" if asked["encryption"] else ""
        more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
        yield (
            "sends",
            f"{len(names)} tensors, {travels['parameters']:,} values{encrypted}: {travels['bytes_up']:,} bytes a round",
        )
        yield "", ", ".join(names[:SHOWN_TENSORS]) + more
        yield "is sent", f"{travels['bytes_down']:,} bytes a round"
        if not travels["alike"]:
            yield "", "other tensors in each round; these are the first round's"
    training = asked["training"]
    yield (
        "rounds",
        (
            f"{asked['rounds']}, each {training['local_epochs']} epoch(s) in batches of {training['batch_size']}; "
            f"a round needs {asked['min_sites']} site(s)"
        ),
    )
    yield "images", _images(asked)
    yield "privacy", str(asked["privacy"] or "no noise")
    yield "encryption", str(asked["encryption"] or "none: the server reads what this site sends")
    yield "aggregation", str(asked["aggregation"])
    special = {name: training[name] for name in ("control_variates", "ditto", "proximal") if training[name]}
    if special:
        yield "besides", str(special)
    if asked["refused"]:
        yield "refused", asked["refused"]


def _deployment_rows(deployment: Deployment) -> Iterable[tuple[str, str]]:
    names = ", ".join(deployment["sites"])
    if deployment["everyone"]:
        yield "sites", "all of the federation" + (f"; at the start {names}" if names else "")
    elif len(deployment["sites"]) == 1:
        yield "sites", f"A PART OF THE SITES: {names} ALONE"
    else:
        yield "sites", f"a part of the sites, which the job names: {names}"
    for app, others in deployment["other_apps"].items():
        yield "", f"another experiment ('{app}') goes to {', '.join(others)}"


def _images(asked: JobRequest) -> str:
    most: Any = asked["data"]["most_images"]
    bounds = ", ".join(f"{split} {count}" for split, count in most.items())
    used = ", ".join(f"{split} {count}" for split, count in (asked["images"] or {}).items())
    what = f"{used} of this site" if used else "all of this site"
    return f"{what}{f' (at most {bounds})' if bounds else ''}; {asked['data']['task']}, {asked['data']['source']}"
