"""What a job asks of a site, for the site's people: before the job runs, while it runs, and in the ledger. No torch."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import JsonValue

from pt_peft.errors import one_line
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.admission import NOT_CODE, asks_image_statistics, code_of
from pt_peft.experiment.deployment import Deployment
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import stage_bytes, stages, up_specs
from pt_peft.files import sha256_of
from pt_peft_flare.flare_internals import JOB_SIGNATURES

SHOWN_TENSORS = 6
ROOT_CA = "rootCA.pem"
"""The federation's root certificate in the folder ``startup`` of a kit."""
LEFT_OUT = (".__nvfl_sig.json", ".__nvfl_submitter.crt", f"custom/{NOT_CODE}")
"""Files of an app that its digest leaves out: those that FLARE adds to a job that is submitted, and what a job with
``--installed`` does not have."""


class Submitter(TypedDict):
    """Who has submitted a job."""

    name: str
    org: str
    role: str
    signed: bool
    """Whether this person's key has signed what the site has of the job; else the server says so."""


class StatisticsAsked(TypedDict):
    """A stage of statistics, see `pt_peft.experiment.statistics`."""

    stage: str
    """Its name, and at which end of the rounds it is."""
    tensors: list[str]
    """Names of the tensors that a site sends."""
    bytes_up: int
    """Bytes that a site sends."""
    bytes_down: int
    """Bytes that a site receives, with the model where it travels."""


class ExchangeAsked(TypedDict):
    """What travels in a round."""

    tensors: list[str]
    """Names of the tensors that a site sends in the first round."""
    parameters: int
    """Their values."""
    bytes_up: int
    """Bytes that a site sends in a round, of tensors or at most of their ciphertexts."""
    bytes_down: int
    """Bytes that a site receives in a round."""
    alike: bool
    """Whether each round exchanges the same tensors."""
    statistics: list[StatisticsAsked]
    """The stages of statistics, in order."""


LimitsAsked = Literal["allowed", "refused", "not checked"]
"""What a site's limits say."""


class JobRequest(TypedDict):
    """What a job asks."""

    experiment: str
    digest: str
    """SHA-256 of the job's app, see `app_digest`: two jobs with equal digests ask the same."""
    submitter: Submitter | None
    """None before the job is submitted."""
    deployment: Deployment | None
    """None if that is not known."""
    image_statistics: bool
    """Whether it has the images counted (`pt_peft.federation.image_statistics`). A job that is written for that trains
    nothing; the rest is the experiment that the counts are for."""
    rounds: int
    min_sites: int
    method: dict[str, JsonValue]
    backbone: dict[str, JsonValue]
    exchange: ExchangeAsked | None
    """None if it has not been computed."""
    data: dict[str, JsonValue]
    """Task, classes, source, and the most images of each split that are used."""
    images: dict[str, int] | None
    """Images of the site that are used, by split; None if they were not counted."""
    training: dict[str, JsonValue]
    head: dict[str, JsonValue]
    """How the classifier starts and ends."""
    federation: dict[str, JsonValue]
    """The longest times of a round."""
    privacy: dict[str, JsonValue] | None
    encryption: dict[str, JsonValue] | None
    aggregation: dict[str, JsonValue]
    code: list[str]
    """Files of the job's own code."""
    limits: LimitsAsked
    refused: list[str]
    """All for which the site refuses the job, as far as it is known."""
    off: list[str] | None
    """All for which the default limits would refuse it, where the site has switched all off; None elsewhere."""


class Refused(TypedDict):
    """What is known of a job that has no valid experiment."""

    submitter: Submitter | None
    deployment: Deployment
    refused: list[str]


def job_request(
    experiment: Experiment,
    app: Path,
    site_name: str | None,
    exchange: Exchange | None = None,
    *,
    submitter: Submitter | None = None,
    deployment: Deployment | None = None,
    images: dict[str, int] | None = None,
    limits: LimitsAsked = "not checked",
    refused: Sequence[str] = (),
    off: list[str] | None = None,
) -> JobRequest:
    """Puts together what is known of a job.

    Args:
        experiment: the job's.
        app: the folder of the job's app.
        site_name: the site that is asked, on which the LoRA rank may depend.
        exchange: what travels, at the experiment's own rank.
        submitter: who has submitted it.
        deployment: to whom it is deployed.
        images: how many images of the site are used, by split.
        limits: what the site's limits say.
        refused: why the site refuses it.
        off: why the default limits would refuse it, if the site has none.
    """
    data, federation = experiment.data, experiment.federation
    most = data.images_per_site if data.source == "lesions" else data.max_images_per_site
    return {
        "experiment": experiment.name,
        "digest": app_digest(app),
        "submitter": submitter,
        "deployment": deployment,
        "image_statistics": asks_image_statistics(app / "config"),
        "rounds": federation.rounds,
        "min_sites": federation.min_sites,
        "method": experiment.method.model_dump(mode="json"),
        "backbone": experiment.backbone.model_dump(mode="json", include={"name", "kwargs", "image_size", "sha256"}),
        "exchange": exchange and exchange_asked(experiment, exchange, site_name),
        "data": {"source": data.source, "task": data.task, "classes": [*data.classes], "most_images": {**most}},
        "images": images,
        "training": experiment.training.model_dump(mode="json"),
        "head": experiment.head.model_dump(mode="json"),
        "privacy": experiment.privacy.model_dump(mode="json") if experiment.privacy.asked else None,
        "encryption": experiment.encryption and experiment.encryption.model_dump(mode="json"),
        "aggregation": experiment.aggregation.model_dump(mode="json"),
        "federation": federation.model_dump(mode="json", include={"round_timeout_s", "site_timeout_s"}),
        "code": code_of(app),
        "limits": limits,
        "refused": [*refused],
        "off": off,
    }


def exchange_asked(experiment: Experiment, exchange: Exchange, site_name: str | None) -> ExchangeAsked:
    """What travels, for a site whose LoRA rank may be its own; `exchange` is at the experiment's."""
    exchange = exchange.at_rank(experiment.federation.lora_ranks.get(site_name or ""))
    first_up, encrypted = exchange.up(0), experiment.encryption is not None
    return {
        "tensors": sorted(first_up),
        "parameters": sum(spec.size for spec in first_up.values()),
        "bytes_up": round_bytes(exchange, experiment.payload, 0, encrypted=encrypted).up,
        "bytes_down": round_bytes(exchange, experiment.payload, 1, encrypted=encrypted).down,
        "alike": not exchange.rotating,
        "statistics": [
            {
                "stage": str(stage),
                "tensors": sorted(up_specs(experiment, exchange, stage)),
                "bytes_up": nbytes.up,
                "bytes_down": nbytes.down,
            }
            for stage in stages(experiment)
            for nbytes in [stage_bytes(experiment, exchange, stage)]
        ],
    }


def app_digest(app: Path) -> str:
    """SHA-256, in hex, over names and contents of an app's files.

    It is the same at the lead and at each site.
    """
    digest = hashlib.sha256()
    for path in sorted(app.rglob("*")):
        name = path.relative_to(app).as_posix()
        if path.is_file() and path.parent.name != "__pycache__" and name not in LEFT_OUT:
            digest.update(f"{name}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


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
    if asked["image_statistics"]:
        yield "counts", "the images of this site by split, class, size, brightness and contrast; no count is of fewer"
        yield "", "images than limits.min_images_per_class. What follows is the experiment that they are for"
    backbone = asked["backbone"]
    yield "method", f"{asked['method']['name']}, head {asked['method']['head']}{_options(asked['method']['options'])}"
    yield "backbone", f"{backbone['name']} at {backbone['image_size']} pixels, weights {str(backbone['sha256'])[:12]}…"
    if travels := asked["exchange"]:
        names, encrypted = travels["tensors"], ", encrypted" if asked["encryption"] else ""
        more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
        tensors = f"{len(names)} tensors, {travels['parameters']:,} values{encrypted}"
        if asked["rounds"]:
            yield "sends", f"{tensors}: {travels['bytes_up']:,} bytes a round"
            yield "", ", ".join(names[:SHOWN_TENSORS]) + more
            yield "receives", f"{travels['bytes_down']:,} bytes a round"
        else:
            yield "sends", "statistics alone"
            yield "receives", f"the model to evaluate, {tensors}: {travels['bytes_down']:,} bytes"
        if not travels["alike"]:
            yield "", "other tensors in each round; these are the first round's"
        for number, one in enumerate(travels["statistics"]):
            sums = f" of {', '.join(one['tensors'])}" if one["tensors"] else ""
            text = f"{one['stage']}: {one['bytes_up']:,} bytes{sums}; receives {one['bytes_down']:,}"
            yield "" if number else "statistics", text
    else:
        yield "sends", "not known: the model was not built"
    training, times = asked["training"], asked["federation"]
    quorum = f"results of at least {asked['min_sites']} site(s)"
    longest = f"at most {times['site_timeout_s']} s at this site, {times['round_timeout_s']} s in all"
    if asked["rounds"]:
        yield "rounds", f"{asked['rounds']}, each of {quorum}"
        yield "a round", f"{training['local_epochs']} epoch(s) in batches of {training['batch_size']}{_steps(asked)}"
        yield "", longest
    else:
        yield "rounds", "none: nothing is trained, the classifier follows from the statistics"
        yield "a stage", f"{quorum}, {longest}"
    yield "precision", _precision(asked)
    yield "head", _head(asked)
    yield "images", _images(asked)
    yield "task", _task(asked)
    yield "privacy", _settings(asked["privacy"]) or "no noise"
    yield "encryption", _settings(asked["encryption"]) or "none: the server reads what this site sends"
    yield "aggregation", _settings(asked["aggregation"])
    for name in ("control_variates", "ditto", "proximal"):
        if training[name]:
            yield "besides", name if training[name] is True else f"{name} {_settings(training[name])}"
    if code := asked["code"]:
        yield (
            "code",
            f"THE JOB BRINGS CODE: {', '.join(code[:SHOWN_TENSORS])}, which can do all that the site's user can",
        )
    yield from _limits_rows(asked)


def _limits_rows(asked: JobRequest) -> Iterable[tuple[str, str]]:
    if asked["off"] is not None:
        would = "the defaults would refuse the job:" if asked["off"] else "the defaults would allow the job"
        yield "limits", f"ALL OFF, by null; {would}"
        yield from (("", one) for one in asked["off"])
    else:
        yield "limits", asked["limits"] + (" (give --site)" if asked["limits"] == "not checked" else "")
    yield from (("refused", one) for one in asked["refused"])


def _settings(value: JsonValue) -> str:
    """JSON in words: ``mean, f 1`` for ``{"name": "mean", "f": 1}``, without what is null, empty or false."""
    if isinstance(value, dict):
        parts = ((name, one) for name, one in value.items() if one not in (None, {}, [], False))
        return ", ".join(
            name if one is True else _nested(one) if name == "name" else f"{name} {_nested(one)}" for name, one in parts
        )
    if isinstance(value, list):
        return ", ".join(map(_nested, value))
    return "" if value is None else str(value)


def _nested(value: JsonValue) -> str:
    return f"({_settings(value)})" if isinstance(value, dict | list) else _settings(value)


def _options(options: JsonValue) -> str:
    return f"; {_settings(options)}" if options else ""


def _head(asked: JobRequest) -> str:
    """How the classifier starts and ends and, where it is solved, how it is chosen."""
    head = asked["head"]
    ends = f"start {head['start']}, finish {head['finish']}"
    if not any(head[end] in ("ridge", "lda") for end in ("start", "finish")):
        return ends
    temperature = "with" if head["temperature"] else "without"
    chosen = f"by {str(head['choose_by']).replace('_', ' ')}, {temperature} a temperature"
    return f"{ends}; penalties {_settings(head['penalties'])} {chosen}"


def _precision(asked: JobRequest) -> str:
    """What the model computes in."""
    precision = asked["training"]["precision"]
    return (
        "auto: bfloat16 where this site's device is fast at it, else float32" if precision == "auto" else str(precision)
    )


def _steps(asked: JobRequest) -> str:
    """How many steps of the optimiser a round has, if the site's images were counted."""
    if not asked["images"]:
        return ""
    epochs, batch = int(str(asked["training"]["local_epochs"])), int(str(asked["training"]["batch_size"]))
    return f": {math.ceil(asked['images']['train'] / batch) * epochs} step(s)"


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
    """How many of the site's images are used, or may be."""
    most: Any = asked["data"]["most_images"]
    if used := asked["images"]:
        return ", ".join(f"{split} {count}" for split, count in used.items())
    bounds = ", ".join(f"{split} {count}" for split, count in most.items())
    return f"at most {bounds}" if bounds else "all of this site"


def _task(asked: JobRequest) -> str:
    data = asked["data"]
    whose = "this site's own images" if data["source"] == "site" else f"generated images ({data['source']})"
    return f"{data['task']} of {whose}, classes {_settings(data['classes'])}"
