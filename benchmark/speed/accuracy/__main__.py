"""Measures seconds and bytes until a federation of HAM10000's four real sites reaches a balanced accuracy.

    python -m benchmark.speed.accuracy [--only plain ours …] [--repeats 1] [--rounds 12] [--blocks 3] [--out FILE]

Contenders take turns. Each finished run is kept in the file, and the same command goes on with what is missing. Images
are decoded before the clock starts. Every aggregate of a run is kept, and evaluated after it on the sites' validation
images, which decide when a target is reached; the final one is evaluated on their test images too. Nothing else should
run on the machine.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, cast

from benchmark.measurements.options import check_positive, parse_with_repeats
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import begun
from benchmark.speed.accuracy.contenders import Contender, contenders
from benchmark.speed.accuracy.curves import Point, Reached, median, reached
from benchmark.speed.accuracy.snapshots import Snapshots
from benchmark.speed.accuracy.task import Task, ham10000_sites
from benchmark.speed.contenders import fresh
from benchmark.speed.measure import measure
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import write_atomically

OUT = Path("benchmark/results/speed_accuracy.json")
TARGETS = (0.60, 0.65)
NAMES = (
    *("plain", "stock_whole", "stock_half", "stock_trained", "ours", "leverless"),
    *("balanced", "statistics", "last_blocks", "bfloat16", "all"),
)


class Settings(TypedDict):
    """What all runs of a result file have in common."""

    experiment: str
    """Digest of the task's experiment, which names its data and backbone."""
    images: dict[str, dict[str, int]]
    """Images by site and split."""
    rounds: int
    blocks: int
    """Number of the last blocks that are trained where not all are."""
    machine: dict[str, Any]


class Row(TypedDict):
    """A contender."""

    what: str
    targets: dict[str, Reached | None]
    """Medians over runs, by target; null if a run has not reached it. ``val_60`` is a validation value of .60,
    ``final`` a run's own last one."""
    val: float
    """Of the final aggregate, the mean over runs."""
    test: float
    """Of the final aggregate, the mean over runs."""
    runs: list[dict[str, Any]]
    """For each run `Measured`, its ``curve`` of `Point`, the final ``test``, and the ``commit``."""


def run_once(contender: Contender, folder: Path, rounds: int) -> dict[str, Any]:
    """Runs and evaluates a contender in a new `folder`. Raises UserError if it fails or leaves no aggregate."""
    contender.prepare(fresh(folder))
    snapshots = Snapshots(folder / contender.aggregate, folder / "aggregates")
    measured = measure(contender.command, folder, rounds, contender.environment, snapshots.watching)
    evaluate = contender.evaluate()
    curve: list[Point] = [
        {"seconds": one.seconds, "wire_bytes": one.wire_bytes, "val": evaluate(one.path, "val")}
        for one in snapshots.found
    ]
    if not curve:
        raise UserError(f"{contender.what}: {folder / contender.aggregate} was never written.")
    test = evaluate(snapshots.found[-1].path, "test")
    origin = provenance()
    about = {"commit": origin["commit"], "dirty": origin["dirty"], "time": origin["time"]}
    return {**asdict(measured), "curve": curve, "test": test, **about}


def row(what: str, runs: Sequence[dict[str, Any]]) -> Row:
    """Sums up the runs of one contender."""
    curves = [cast(list[Point], run["curve"]) for run in runs]
    aims = {f"val_{100 * target:.0f}": [target] * len(runs) for target in TARGETS}
    aims["final"] = [curve[-1]["val"] for curve in curves]
    return {
        "what": what,
        "targets": {
            name: median([reached(curve, aim) for curve, aim in zip(curves, values, strict=True)])
            for name, values in aims.items()
        },
        "val": sum(curve[-1]["val"] for curve in curves) / len(curves),
        "test": sum(run["test"] for run in runs) / len(runs),
        "runs": list(runs),
    }


def measure_all(task: Task, names: Sequence[str], repeats: int, blocks: int, folder: Path, out: Path) -> dict[str, Any]:
    """Makes the runs that `out` lacks, in turn, and writes it after each.

    Args:
        task: what is done.
        names: of contenders.
        repeats: runs of each.
        blocks: see `contenders`.
        folder: takes the runs, each of which is removed when it has been evaluated.
        out: the result file.

    Raises:
        UserError: if `out` is of another task or machine, or a run fails.
    """
    origin = provenance()
    settings: Settings = {
        "experiment": task.experiment.digest(),
        "images": {
            name: {split: len(getattr(one, split)) for split in ("train", "val", "test")}
            for name, one in task.data.items()
        },
        "rounds": task.experiment.federation.rounds,
        "blocks": blocks,
        "machine": dict(origin["machine"]),
    }
    result = begun(out, settings) or {**origin, "settings": settings, "contenders": {}}
    known = contenders(task, blocks)
    for repeat in range(repeats):
        for name in names:
            runs = result["contenders"].get(name, {"runs": []})["runs"]
            if len(runs) > repeat:
                continue
            runs.append(run_once(known[name], folder / name, settings["rounds"]))
            result["contenders"][name] = row(known[name].what, runs)
            result["contenders"] = {one: result["contenders"][one] for one in NAMES if one in result["contenders"]}
            write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
            print(f"{name} {repeat + 1}/{repeats}: {runs[-1]['wall_s']:.1f} s", file=sys.stderr, flush=True)
            fresh(folder / name)
    return result


def table(rows: dict[str, Row]) -> str:
    """The contenders as a Markdown table."""
    heads = [f"{what} to {aim}" for aim in (*(f"{target:.2f}" for target in TARGETS), "final") for what in ("s", "MB")]
    lines = [["contender", *heads, "final val", "final test"], ["---"] + ["---:"] * (len(heads) + 2)]
    for one in rows.values():
        cells: list[float | None] = []
        for found in one["targets"].values():
            cells += [found["seconds"], found["megabytes"]] if found else [None, None]
        shown = ["\N{EN DASH}" if value is None else f"{value:.1f}" for value in cells]
        lines.append([one["what"], *shown, f"{one['val']:.3f}", f"{one['test']:.3f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="contenders to run (default: all)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of training (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=3, help="last blocks, where not all (default: %(default)s)")
    options = parse_with_repeats(parser, arguments, repeats=1, out=OUT)
    check_positive(options, "rounds", "blocks")
    names = [name for name in NAMES if name in options.only]
    with tempfile.TemporaryDirectory(prefix="accuracy-") as temporary:
        task = Task.write(*ham10000_sites(options.rounds), Path(temporary) / "task")
        result = measure_all(task, names, options.repeats, options.blocks, Path(temporary) / "runs", options.out)
    print(table(result["contenders"]))


if __name__ == "__main__":
    sys.exit(main())
