"""The egress ledger: one line of JSON for each payload that leaves a site, or was stopped from leaving.

Before them stands what the job asks of the site, and what it has counted for that.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors, TensorSpec, payload_bytes, payload_l2_norm, payload_sha256
from pt_peft_flare.job_request import ExchangeAsked, JobRequest, Refused

FILE_NAME = "egress.jsonl"
OPEN = "open"
"""What stands for the task in the line that a site writes when a job's process starts there, before it checks it."""
COUNTED = "counted"
"""What stands for the task in the line that a site writes when the first task has come."""

Entry = dict[str, JsonValue]
"""Fields of a line."""


def opening_entry(job_id: str, asked: JobRequest | Refused) -> Entry:
    """The first line: what a job asks, as ``show-job`` tells it, before anything of the site's was counted for it."""
    return {"job": job_id, "task": OPEN, "round": None, "asks": cast(Entry, asked)}


def counted_entry(
    job_id: str, exchange: ExchangeAsked | None, images: Mapping[str, int] | None, refused: Sequence[str]
) -> Entry:
    """The second line: what travels and how many images are used, and for what the site refuses the job after all."""
    found = {"exchange": exchange, "images": images, "refused": [*refused]}
    return {"job": job_id, "task": COUNTED, "round": None, **cast(Entry, found)}


def has(folder: Path, task: str) -> bool:
    """Whether the ledger in `folder` has a line of a task."""
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return any(f'"task": "{task}"' in line for line in lines)  # a power cut may have cut one


def tensor_entry(tensors: Tensors, values: Tensors) -> Entry:
    """Describes a payload's tensors: names, shapes, dtypes, bytes and SHA-256, as they travel.

    Args:
        tensors: the tensors as they travel.
        values: what they stand for, whose L2 norm is given.
    """
    return {
        "tensors": {
            key: {"shape": [*value.shape], "dtype": str(value.dtype), "bytes": value.nbytes}
            for key, value in sorted(tensors.items())
        },
        "tensor_bytes": payload_bytes(tensors),
        "l2_norm": payload_l2_norm(values),
        "sha256": payload_sha256(tensors),
    }


def encrypted_entry(ciphertexts: Tensors, specs: Mapping[str, TensorSpec], l2_norm: float) -> Entry:
    """Describes tensors that left as ciphertexts.

    Args:
        ciphertexts: what left.
        specs: shapes and dtypes of the tensors that are in them.
        l2_norm: the norm of their values, which only the site can tell.
    """
    return {
        "encrypted": "ckks",
        "ciphertexts": len(ciphertexts),
        "holds": {key: {"shape": [*spec.shape], "dtype": spec.dtype} for key, spec in sorted(specs.items())},
        "tensor_bytes": payload_bytes(ciphertexts),
        "l2_norm": l2_norm,
        "sha256": payload_sha256(ciphertexts),
    }


def append(folder: Path, entry: Entry) -> None:
    """Appends `entry` with the time (UTC) to the ledger in `folder`, on disk before this returns.

    Raises:
        OSError: if it cannot be written; the payload must then not leave.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}) + "\n"
    with open(folder / FILE_NAME, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a power cut has cut the last line off
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[list[Entry], int]:
    """The lines of a ledger, and the number of those that were cut off.

    Raises:
        UserError: if it cannot be read, or has no line.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    entries: list[Entry] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entries.append(json.loads(line))
    if not entries:
        raise UserError(f"{path}: is no ledger of a site: it has no line of JSON.")
    return entries, len(lines) - len(entries)
