"""The egress ledger: one line of JSON for each payload that leaves a site, or was stopped from leaving."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pt_peft.exchange.tensors import Tensors, TensorSpec, payload_bytes, payload_l2_norm, payload_sha256

FILE_NAME = "egress.jsonl"


def tensor_entry(tensors: Tensors, values: Tensors) -> dict:
    """What the ledger says of a payload's tensors: names, shapes, dtypes, bytes and SHA-256, as they travel, and the L2 norm of
    the `values` that they stand for.
    """
    return {
        "tensors": {
            key: {"shape": list(value.shape), "dtype": str(value.dtype), "bytes": value.nbytes}
            for key, value in sorted(tensors.items())
        },
        "tensor_bytes": payload_bytes(tensors),
        "l2_norm": payload_l2_norm(values),
        "sha256": payload_sha256(tensors),
    }


def encrypted_entry(ciphertexts: Tensors, specs: Mapping[str, TensorSpec], l2_norm: float) -> dict:
    """What the ledger says of tensors that left as ciphertexts.

    Args:
        specs: of the tensors that are in them.
        l2_norm: of their values, which only the site can tell.
    """
    return {
        "encrypted": "ckks",
        "ciphertexts": len(ciphertexts),
        "holds": {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in sorted(specs.items())},
        "tensor_bytes": payload_bytes(ciphertexts),
        "l2_norm": l2_norm,
        "sha256": payload_sha256(ciphertexts),
    }


def append(folder: Path, entry: dict) -> None:
    """Appends `entry` with the time (UTC) to the ledger in `folder`, on disk before this returns.

    Raises:
        OSError: if it cannot be written; the payload must then not leave.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}) + "\n"
    with open(folder / FILE_NAME, "a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
