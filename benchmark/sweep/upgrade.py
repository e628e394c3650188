"""Makes version 2 of a result file of version 1, in which experiments said what the sites' images mean."""

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmark.sweep.records import RECORDS
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.files import write_atomically
from pt_peft.schema import parse

OLD = 1
"""The version that is read."""


def upgrade(path: Path) -> int:
    """Rewrites the file in place; every run keeps its name, its figures and what it was run on.

    Returns:
        The number of records.

    Raises:
        UserError: naming file and line, if it is of another version or damaged, or another process writes it; nothing
            is changed then.
    """
    try:
        with FileLock(path.resolve().with_name(path.name + ".lock"), blocking=False):
            lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
            records = [_upgraded(line, number, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
            write_atomically(path, b"".join(json.dumps(one).encode() + b"\n" for one in records))
    except Timeout:
        raise UserError(f"{path}: another process is writing its results there.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read and written ({error.strerror}).") from None
    return len(records)


def _upgraded(line: bytes, number: int, source: str) -> dict[str, Any]:
    """The record of version 2. Raises UserError."""
    try:
        record = json.loads(line)
        kind, version = record["kind"], record.get("version")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UserError(f"{source}: is no record of a result file; remove the line, and it is run anew.") from None
    if (kind == "suite") != (number == 1) or kind not in RECORDS or (kind == "suite" and version != OLD):
        raise UserError(
            f"{source}: has the kind {kind!r} and version {version!r}; a file that begins with a suite of version "
            f"{OLD} would be right."
        )
    if kind == "suite":
        record["version"] = OLD + 1
        backbones = [one.get("pretraining") for one in record["suite"].get("backbones", {}).values()]
        for images in (*record["suite"].get("data", {}).values(), *(one for one in backbones if one)):
            images["site"] = {**images.get("site", {}), **_taken_from(images["data"])}
    elif kind != "choice":
        own = _taken_from(record["experiment"].get("data", {}))
        record["site_data"] = parse(SiteData, {**own, "pooled": True}, f"{source}: field 'experiment.data'").meaning()
    parse(RECORDS[kind], record, source)
    return record


def _taken_from(data: dict[str, Any]) -> dict[str, Any]:
    """Takes out of a section ``data`` of an experiment what is for `site.json` to say now, as that says it."""
    own = {name: data.pop(name) for name in ("columns", "no_finding") if name in data}
    if data.get("source", "lesions") == "lesions":
        return {}
    own["source"], data["source"] = data["source"], "site"
    return own
