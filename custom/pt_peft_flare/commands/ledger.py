"""Shows what has left a site for a job, and compares it with what the server says that it has counted.

The site's ledger has a line for each payload. Each result that the server counted stands in the job's metrics.json with
the SHA-256 of its tensors and with its report, counts of images in its image_statistics.json; they must be those of a
line. Ends with exit code 1 if the server counts what the ledger does not have.

Example:
    pt-peft ledger hospital-1/ID --verify ID/workspace/metrics.json
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Field

from pt_peft.errors import UserError, one_line, unlike_expected
from pt_peft.experiment.admission import IMAGE_STATISTICS, STATISTICS
from pt_peft.schema import parse, read_json
from pt_peft_flare.ledger import FILE_NAME, OPEN, read

TRAIN, VALIDATE, SUBMIT_MODEL = "train", "validate", "submit_model"
COUNTED = (TRAIN, VALIDATE, STATISTICS, SUBMIT_MODEL, IMAGE_STATISTICS)
"""Tasks whose results the server counts."""
SHOWN_DIGITS = 12
"""Of a digest in the table."""


class Sent(TypedDict):
    """A payload that left, or was held back, or a word that a task has failed."""

    time: str
    """UTC."""
    task: str
    round: int | None
    """From 0; of the final evaluation, the number of all rounds."""
    stage: str | None
    """Of statistics; null for other tasks."""
    bytes: int
    """Of the tensors as they travelled."""
    sha256: str | None
    """Of the tensors; null if nothing left but a reason."""
    report: dict[str, Any] | None
    reason: str | None
    """Code of the reason that left in place of a result."""
    held_back: str | None
    """Why the egress filter held the result back."""
    counted: bool | None
    """Whether the server has counted it; null if that was not looked for."""
    left_out: str | None
    """Why the server says that it did not count it."""


class Ledger(TypedDict):
    """What has left a site for a job."""

    job: str
    site: str | None
    """Null where nothing says it."""
    opened: list[str]
    """When the job's process has started at the site (UTC): more than once if it was killed or the site restarted."""
    cut_off: int
    """Lines that a power cut has cut off; what they would have told of did not leave."""
    sent: list[Sent]
    bytes: int
    """Of all tensors that left."""
    held_back: int
    counted: int | None
    """Results that the server counts; null without ``--verify``."""
    faults: list[str]
    """Where the server's word is not what the ledger says."""


class _Part(BaseModel):
    """A part of the ledger; the rest is left out."""

    model_config = ConfigDict(strict=True)


class _Reason(_Part):
    code: str


class _Line(_Part):
    """A line of the ledger, see `pt_peft_flare.ledger`."""

    time: str
    job: str
    task: str
    round: int | None
    stage: str | None = None
    tensor_bytes: Annotated[int, Field(ge=0, le=2**53)] = 0
    sha256: str | None = None
    report: dict[str, Any] | None = None
    reason: _Reason | None = None
    held_back: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("ledger", type=Path, help=f"folder of the job in the site's kit, or the file {FILE_NAME} in it")
    parser.add_argument(
        "--verify", type=Path, metavar="METRICS", help="metrics.json of the job, from the lead's download"
    )
    parser.add_argument("--name", help="the site's name in the federation (default: as the job's folder says)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints the ledger. Raises UserError if it cannot be read, or the server counts what it does not have."""
    path = options.ledger / FILE_NAME if options.ledger.is_dir() else options.ledger
    found = look(path, options.name)
    if options.verify:
        verify(found, options.verify)
    print(json.dumps(found, indent=2) if options.json else "\n".join(map(one_line, table(found))))
    if found["faults"]:
        raise UserError(f"{options.verify}: is not what {path} says: {'; '.join(found['faults'])}.")


def look(path: Path, name: str | None) -> Ledger:
    """What the ledger `path` says of the site `name`. Raises UserError if it is none."""
    lines, cut_off = read(path)
    entries = [parse(_Line, line, f"{path}: is no ledger of a site") for line in lines]
    jobs = {line.job for line in entries}
    opened = [line.time for line in entries if line.task == OPEN]
    sent = [_sent(line) for line in entries if {"tensor_bytes", "reason"} & line.model_fields_set]
    if len(jobs) != 1:
        raise UserError(f"{path}: is of {len(jobs)} jobs; a ledger is of one.")
    apps = sorted(path.parent.glob("app_*"))
    return {
        "job": jobs.pop(),
        "site": name or (apps[0].name.removeprefix("app_") if apps else None),
        "opened": opened,
        "cut_off": cut_off,
        "sent": sent,
        "bytes": sum(one["bytes"] for one in sent),
        "held_back": sum(one["held_back"] is not None for one in sent),
        "counted": None,
        "faults": [],
    }


def _sent(line: _Line) -> Sent:
    return {
        "time": line.time,
        "task": line.task,
        "round": line.round,
        "stage": line.stage,
        "bytes": line.tensor_bytes,
        "sha256": line.sha256,
        "report": line.report,
        "reason": line.reason and line.reason.code,
        "held_back": line.held_back,
        "counted": None,
        "left_out": None,
    }


def verify(ledger: Ledger, path: Path) -> None:
    """Notes in `ledger` what the server has counted by its record `path`, and where that is not what has left.

    Rounds of another job, which this one continues, are in that job's ledger and not looked at.

    Raises:
        UserError: if `path` is no record, or of another job.
    """
    site, job = ledger["site"], ledger["job"]
    if site is None:
        raise UserError("--name: is needed, as nothing beside the ledger says whose it is.")
    try:
        record = cast(dict[str, Any], read_json(path))
        entries = _entries(record, job, site)
        if record["job"] != job and not entries:
            raise UserError(f"{path}: is of job {record['job']}; the ledger is of job {job}.")
        counted = [(asked, one["sites"].get(site)) for asked, one in entries]
        left_out = {asked: reason["sentence"] for asked, one in entries if (reason := one["left_out"].get(site))}
        said = [_find(ledger, asked, result) for asked, result in counted if result is not None]
        _explain(ledger, left_out)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: is no metrics.json, or one of an earlier version ({unlike_expected(error)})."
        ) from None
    ledger["counted"] = len(said)
    ledger["faults"] = [fault for fault in said if fault]


_Asked = tuple[str, int | None, str | None]
"""Task, round, and stage of statistics."""


def _entries(record: dict[str, Any], job: str, site: str) -> list[tuple[_Asked, dict[str, Any]]]:
    """What the server says that it has counted in a job, and left out, by what it asked."""
    if "edges" in record:
        return [((IMAGE_STATISTICS, None, None), record)] if record["job"] == job else []
    rounds = [one for one in record["rounds"] if one["job"] == job]
    stages = [one for one in record["statistics"] if one["job"] == job]
    entries: list[tuple[_Asked, dict[str, Any]]] = [((TRAIN, one["round"], None), one) for one in rounds]
    entries += [((STATISTICS, one["round"], one["stage"]), one) for one in stages]
    if record["job"] == job and (final := record["final"]):
        entries.append(((VALIDATE, record["experiment"]["federation"]["rounds"], None), final))
    if record["job"] == job and (cross_site := record.get("cross_site")):
        entries += [((VALIDATE, None, None), one) for one in cross_site["models"].values()]
        own = {"sites": {site: cross_site["models"].get(site)}, "left_out": cross_site["left_out"]}
        entries.append(((SUBMIT_MODEL, None, None), own))
    return entries


def _asked(one: Sent) -> _Asked:
    return one["task"], one["round"], one["stage"]


def _find(ledger: Ledger, asked: _Asked, result: dict[str, Any]) -> str | None:
    """Marks the line of a result that the server has counted. Returns what is wrong if there is none."""
    when = _when(asked)
    lines = [one for one in ledger["sent"] if _asked(one) == asked and one["sha256"] and one["held_back"] is None]
    if not lines:
        return f"{when}: the server counts a result, and none left this site"
    if asked[0] not in (VALIDATE, IMAGE_STATISTICS):  # no tensors go with these
        digest = str(result["sha256"])
        same = [one for one in lines if one["sha256"] == digest]
        if not same:
            sent = ", ".join(str(one["sha256"])[:SHOWN_DIGITS] for one in lines)
            return f"{when}: the server counts tensors {digest[:SHOWN_DIGITS]}, and {sent} left this site"
        lines = same
    reports = [one for one in lines if _is_of(one, result)]
    if not reports:
        last = lines[-1]["report"] or {}
        others = sorted(name for name, value in last.items() if name not in result or result[name] != value)
        return f"{when}: the server has another report ({', '.join(others)})"
    new = [one for one in reports if not one["counted"]]  # two models may have alike reports
    if not new:
        return f"{when}: the server counts a result twice"
    new[-1]["counted"] = True
    return None


def _is_of(one: Sent, result: dict[str, Any]) -> bool:
    """Whether the report of a line is that of a result; a site's own model has none."""
    report = one["report"]
    return one["task"] == SUBMIT_MODEL or (bool(report) and report.items() <= result.items())


def _explain(ledger: Ledger, reasons: dict[_Asked, str]) -> None:
    """Notes of each result that the server has not counted why."""
    for one in ledger["sent"]:
        if one["sha256"] and one["task"] in COUNTED and not one["counted"]:
            one["counted"] = False
            one["left_out"] = reasons.get(_asked(one))


def table(ledger: Ledger) -> Iterator[str]:
    """`ledger` for a person."""
    starts = len(ledger["opened"])
    again = f", and again {', '.join(ledger['opened'][1:])}" if starts > 1 else ""
    began = f"started {ledger['opened'][0]}{again}" if starts else "did not start"
    yield f"job {ledger['job']} at {ledger['site'] or 'a site without a name'}: {began}"
    for one in ledger["sent"]:
        yield (
            f"{_when(_asked(one)):16}{one['task'][:12]:14}{one['bytes']:>12,} bytes  "
            f"{(one['sha256'] or '')[:SHOWN_DIGITS]:{SHOWN_DIGITS}}  {one['time'][:19]}  {_became(one)}"
        ).rstrip()
    left = sum(one["sha256"] is not None for one in ledger["sent"])
    yield f"in all {left} result(s) left, with {ledger['bytes']:,} bytes of tensors; {ledger['held_back']} held back"
    if ledger["cut_off"]:
        yield f"{ledger['cut_off']} line(s) cut off, by a power cut perhaps: what they would have told of did not leave"
    if ledger["counted"] is not None:
        agreed = ledger["counted"] - len(ledger["faults"])
        yield f"the server counts {ledger['counted']} result(s) of this site; {agreed} of them are in this ledger"


def _became(one: Sent) -> str:
    """What became of a payload."""
    if one["held_back"] is not None:
        return f"held back: {one['held_back']}"
    if one["reason"]:
        return f"nothing but a reason left: {one['reason']}"
    if one["counted"] is None:
        return ""
    return "counted" if one["counted"] else f"not counted: {one['left_out'] or 'the server does not say why'}"


def _when(asked: _Asked) -> str:
    task, number, stage = asked
    if task == IMAGE_STATISTICS:
        return "image counts"
    if number is None:
        return "cross-site" if task in (VALIDATE, SUBMIT_MODEL) else "no round"
    if task == STATISTICS:
        return f"{stage or 'stage'} after {number}"
    return "final" if task == VALIDATE else f"round {number + 1}"
