"""Measures the memory of N processes that each hold one backbone: mapped, as sites load it, and copied.

    python -m benchmark.measurements.shared_weights --processes 8 --out benchmark/results/shared_weights.json

The processes are forked after the imports, as a worker host forks its workers. Each loads the same file of random
weights, runs a forward pass and waits. PSS counts a page that k processes share as 1/k for each, so that the sum of PSS
is what they take together.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import finish
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Backbone, Method, ModelSpec
from pt_peft.files import check_place
from pt_peft.model.adapted_model import build_model, canonical_parameters
from pt_peft.model.backbone import plain_model
from pt_peft.schema import parse

FIELDS = ("Pss", "Rss", "Private_Clean", "Private_Dirty")
"""The fields of ``/proc/<pid>/smaps_rollup`` that are recorded."""

Load = Callable[[ModelSpec, Path], nn.Module]
"""Builds a model, with weights from a file."""

_FORK = multiprocessing.get_context("fork")


def mapped(spec: ModelSpec, weights: Path) -> nn.Module:
    """Builds the model as a site does."""
    return build_model(spec, weights).module


def copied(spec: ModelSpec, weights: Path) -> nn.Module:
    """Builds the model and copies the weights into it."""
    module = build_model(spec, None).module
    parameters = canonical_parameters(module)
    with torch.no_grad():
        for key, value in load_file(weights).items():
            parameters[key].copy_(value)
    return module


def nothing(spec: ModelSpec, weights: Path) -> nn.Module:
    """Builds no model, to measure what a process takes without one."""
    return nn.Identity()


def write_random_weights(spec: ModelSpec, path: Path) -> None:
    """Writes `path` from another process, so that this one keeps no memory of it. Raises UserError if that fails."""
    process = _FORK.Process(target=_write_random_weights, args=(spec, path))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"{path}: the weights could not be written.")


def _write_random_weights(spec: ModelSpec, path: Path) -> None:
    save_file(plain_model(spec.backbone, num_classes=0).state_dict(), path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # a page that is not written out yet counts as dirty


def measure(load: Load, spec: ModelSpec, weights: Path, processes: int) -> list[dict[str, int]]:
    """Measures processes that all hold a model and have used it.

    Args:
        load: builds the model in each process.
        spec: of the model.
        weights: file of the backbone's weights.
        processes: how many.

    Returns:
        `FIELDS` of each process, in bytes.

    Raises:
        UserError: if a process ends early.
    """
    started: list[tuple[BaseProcess, Connection]] = []
    pids: list[int] = []
    try:
        for _ in range(processes):
            ours, theirs = _FORK.Pipe()
            process = _FORK.Process(target=_hold, args=(load, spec, weights, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        for process, connection in started:
            try:
                pids.append(connection.recv())
            except EOFError:
                raise UserError(f"a process that held the model ended with exit code {process.exitcode}.") from None
        return [_memory(pid) for pid in pids]
    finally:
        for process, connection in started:
            connection.close()
            process.join(10)
            process.kill()


def _hold(load: Load, spec: ModelSpec, weights: Path, parent: Connection) -> None:
    torch.set_num_threads(1)
    size = spec.backbone.image_size
    model = load(spec, weights).eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    parent.send(os.getpid())
    with suppress(EOFError):  # the parent closes its end when it has measured
        parent.recv()


def _memory(pid: int) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines())
    found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
    return {field: found[field] for field in FIELDS}


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.shared_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--backbone", default="vit_base_patch16_224", help="timm architecture (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side, pixels (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    check_positive(options, "processes")
    check_place(options.out)
    origin = provenance()
    fields = {"name": options.backbone, "image_size": options.image_size, "sha256": "0" * 64}
    backbone = parse(Backbone, fields, "--backbone")
    spec = ModelSpec(seed=0, backbone=backbone, classes=("a", "b"), method=Method(name="lora"))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_random_weights(spec, weights)
        size = weights.stat().st_size
        found = {load.__name__: measure(load, spec, weights, options.processes) for load in (nothing, mapped, copied)}
    sums = {name: {field: sum(one[field] for one in rows) for field in FIELDS} for name, rows in found.items()}
    record = {
        "backbone": fields["name"],
        "image_size": options.image_size,
        "weights_bytes": size,
        "processes": options.processes,
        "sum_bytes": sums,
        "process_bytes": found,
        "provenance": origin,
    }
    lines = [
        f"{options.processes} processes with {options.backbone}, a file of {size / 2**20:.0f} MiB; sums in MiB",
        f"{'weights':<10}{'PSS':>8}{'RSS':>8}{'private':>9}{'PSS less imports':>18}",
    ]
    for name, one in sums.items():
        private = one["Private_Clean"] + one["Private_Dirty"]
        above = one["Pss"] - sums["nothing"]["Pss"]
        pss, rss, private, above = (value / 2**20 for value in (one["Pss"], one["Rss"], private, above))
        lines.append(f"{name:<10}{pss:>8.0f}{rss:>8.0f}{private:>9.0f}{above:>18.0f}")
    finish(options, record, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
