"""Runs the suite `payloads` in the plain loop: bytes and accuracy of every way to write payloads, in one file and one table.

    python -m benchmark.payloads --out benchmark/results/payloads.json
"""

import argparse
import json
import sys
from pathlib import Path

from benchmark.cells import Cell, Grid
from benchmark.engines import run_reference
from benchmark.evaluation import predict
from benchmark.provenance import provenance
from benchmark.reference import load_sites, make_trainer
from benchmark.suite import Suite
from pt_peft.command import command
from pt_peft.errors import UserError
from pt_peft.files import write_atomically

SUITE = "payloads"


def measure(cell: Cell) -> dict:
    """Bytes of a site in a round, each way (raw arrays), and what the final adapter reaches on all test images.

    Raises:
        UserError: as the engine does.
    """
    experiment = cell.experiment
    names = list(experiment.federation.sites)
    trainer, sites = make_trainer(experiment, cell.site), load_sites(experiment, cell.site, names)
    outcome = run_reference(cell, trainer, sites, Path())
    metrics = predict(trainer, outcome.final.tensors, outcome.final.kept, sites, "test").metrics(experiment.data.task)["pooled"]
    visits = len(outcome.rounds) * len(names)
    return {
        "seed": experiment.seed,
        "bytes_up": sum(one["bytes_out"] for one in outcome.rounds) // visits,
        "bytes_down": sum(one["bytes_in"] for one in outcome.rounds) // visits,
        "balanced_accuracy": metrics["balanced_accuracy"],
        "loss": metrics["loss"],
    }


def summary(payload: dict, runs: list[dict]) -> dict:
    """One row of the table."""
    first = runs[0]
    return {
        "payload": payload,
        "bytes_up": first["bytes_up"],
        "bytes_down": first["bytes_down"],
        "balanced_accuracy": sum(run["balanced_accuracy"] for run in runs) / len(runs),
        "runs": runs,
    }


def table(rows: dict[str, dict]) -> str:
    """As Markdown; ratios are to the first row."""
    plain = next(iter(rows.values()))
    lines = [
        "| payload | bytes up, a round | of float32 | bytes down | of float32 | balanced accuracy | lowest to highest |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        reached = [run["balanced_accuracy"] for run in row["runs"]]
        up, down = row["bytes_up"], row["bytes_down"]
        lines.append(
            f"| {name} | {up:,} | {up / plain['bytes_up']:.3f} | {down:,} | {down / plain['bytes_down']:.3f} | "
            f"{row['balanced_accuracy']:.3f} | {min(reached):.3f} – {max(reached):.3f} |"
        )
    return "\n".join(lines)


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.payloads", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default=SUITE, help="another suite (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    if not options.out.resolve().parent.is_dir():
        raise UserError(f"--out: {options.out.resolve().parent} is not a folder.")
    suite = Suite.read(options.suite)
    if any(model.weights for model in suite.backbones.values()) or suite.tuning:
        raise UserError("--suite: this runs suites of the embedded backbone without tuning; python -m benchmark run takes any.")
    record = {"provenance": provenance(), "suite": suite.name, "payloads": {}}
    rows, runs = record["payloads"], {}
    for cell in Grid(suite, dict.fromkeys(suite.backbones), options.out.resolve().parent).runs([]):
        name = cell.axes["aggregation"]
        runs.setdefault(name, []).append(measure(cell))
        rows[name] = summary(cell.experiment.payload.model_dump(mode="json"), runs[name])
        write_atomically(options.out, (json.dumps(record, indent=1) + "\n").encode())  # what is measured is not lost
        print(f"{cell.name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
