"""Measures the reference work by every contender, alternating; reports medians, ratios and phases.

    python -m benchmark.speed [--repeats 3] [--only plain ours] [--flower PYTHON] [--out benchmark/results/speed.json]

Flower needs the Python of an environment that has ``flwr[simulation]`` besides this project's packages. Nothing else
should run on the machine.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.measurements.options import parse_with_repeats
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from benchmark.speed.contenders import Contender, flare_stock, flower, flower_version, fresh, ours, plain
from benchmark.speed.growth import simulated
from benchmark.speed.measure import Measured, measure
from benchmark.speed.work import Work
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft_flare.persistor import FINAL

OUT = Path("benchmark/results/speed.json")
NAMES = ("plain", "flare_stock", "flower", "ours", "ours_int8")
FURTHER_SITE = (Work(sites=8, rounds=2, images=64), Work(sites=16, rounds=2, images=64))
"""The works that measure the memory of a further site: small, as memory does not depend on the amount of work."""
Summary = dict[str, Any]
"""The medians of `FIELDS` over a contender's runs, and the ``runs``; for ours more."""
FIELDS = ("wall_s", "imports_s", "startup_s", "training_s", "gap_per_round_s", "tail_s", "peak_pss_gb", "wire_over_raw")


def medians(runs: Sequence[Measured], raw_bytes: int, transfers: int) -> Summary:
    """Summarises the runs of one contender: the median of each field, each for itself.

    Args:
        runs: of the contender.
        raw_bytes: size of the payload.
        transfers: how often the payload travels in a run; 0 for a contender that sends nothing.
    """
    rows = [asdict(run) for run in runs]
    found: Summary = {name: statistics.median(row[name] for row in rows) for name in FIELDS if name != "wire_over_raw"}
    wires = [run.wire_bytes for run in runs if run.wire_bytes is not None]
    counted = transfers and len(wires) == len(runs)
    found["wire_over_raw"] = statistics.median(wires) / (raw_bytes * transfers) if counted else None
    return {**found, "runs": rows}


def table(contenders: Mapping[str, Summary]) -> str:
    """The contenders as a Markdown table."""
    lines: list[list[str]] = []
    for name, found in contenders.items():
        ratio = found["wall_s"] / contenders["plain"]["wall_s"] if "plain" in contenders else None
        numbers = (ratio, *(found[field] for field in FIELDS))
        values = ["\N{EN DASH}" if number is None else f"{number:.2f}" for number in numbers]
        lines.append([name, *values])
    return markdown_table(["contender", "wall / plain", *FIELDS], lines, texts=1)


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, help="contenders to run (default: all)")
    parser.add_argument(
        "--flower", metavar="PYTHON", help="Python that has flwr[simulation]; Flower is left out without it"
    )
    parser.add_argument("--keep", type=Path, help="new folder for the files of the runs (default: a temporary one)")
    options = parse_with_repeats(parser, arguments, repeats=3, out=OUT)
    if options.only and "flower" in options.only and not options.flower:
        raise UserError(
            "--only: flower needs a Python that has flwr[simulation], as --flower; see benchmark/README.md."
        )
    if options.keep and options.keep.exists():
        raise UserError(f"--keep: {options.keep} exists; the name of a new folder would be right.")
    origin = provenance()
    if options.flower:
        origin["versions"]["flwr"] = flower_version(options.flower)
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        folder = options.keep.resolve() if options.keep else Path(temporary) / "speed"
        work = Work()
        site = work.write(folder / "work")
        makers: dict[str, Callable[[], Contender]] = {
            "plain": lambda: plain(work, folder / "work"),
            "flare_stock": lambda: flare_stock(work, folder / "work"),
            "flower": lambda: flower(work, folder / "work", options.flower),
            "ours": lambda: ours(work, folder / "work", site),
            "ours_int8": lambda: ours(
                work, folder / "work", site, payload={"up": {"name": "int8"}, "down": {"name": "int8"}}
            ),
        }
        names = [name for name in NAMES if name in (options.only or NAMES) and (name != "flower" or options.flower)]
        contenders = {name: makers[name]() for name in names}
        runs = alternating(contenders, options.repeats, folder, work.rounds)
        raw = work.raw_bytes(folder / "work")
        found = {name: medians(runs[name], raw, contenders[name].transfers) for name in names}
        if "ours" in found:
            found["ours"] |= further_site(folder / "memory")
            found["ours"]["difference_from_oracle"] = difference(work, folder, site, options.repeats)
    ratios = {name: one["wall_s"] / found["plain"]["wall_s"] for name, one in found.items() if "plain" in found}
    result = {**origin, "work": asdict(work), "raw_bytes": raw, **found, "wall_over_plain": ratios or None}
    finish(options, result, table(found))


def alternating(
    contenders: Mapping[str, Contender], repeats: int, folder: Path, rounds: int
) -> dict[str, list[Measured]]:
    """Runs the contenders in turn, `repeats` times. Returns the runs of each.

    Args:
        contenders: by name.
        repeats: how often each runs.
        folder: takes a folder ``runs/NAME-REPEAT`` of each run.
        rounds: of a run.

    Raises:
        UserError: if a run fails.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, contender in contenders.items():
            run_folder = fresh(folder / "runs" / f"{name}-{repeat}")
            contender.prepare(run_folder)
            runs[name].append(measure(contender.command, run_folder, rounds, contender.environment))
            print(f"{name} {repeat + 1}/{repeats}: {runs[name][-1].wall_s:.1f} s", file=sys.stderr, flush=True)
    return runs


def further_site(folder: Path) -> Summary:
    """Measures the memory that one more site takes, 10^9 bytes, by two simulations in which all sites run at a time.

    Args:
        folder: takes what they write.

    Returns:
        ``pss_per_site_gb``, and the two ``memory_runs``.

    Raises:
        UserError: if a run fails.
    """
    few, many = (simulated(work, folder / str(work.sites))[0] for work in FURTHER_SITE)
    per_site = (many.peak_pss_gb - few.peak_pss_gb) / (FURTHER_SITE[1].sites - FURTHER_SITE[0].sites)
    runs = [{"work": asdict(work), **asdict(run)} for work, run in zip(FURTHER_SITE, (few, many), strict=True)]
    return {"pss_per_site_gb": per_site, "memory_runs": runs}


def difference(work: Work, folder: Path, site: Site, repeats: int) -> float:
    """Returns the greatest difference between a value of the final adapter of our runs in FLARE and of the oracle's."""
    experiment = work.experiment(folder / "work")
    expected = federate(make_trainer(experiment, site), load_sites(experiment, site, work.names)).tensors
    runs = [folder / "runs" / f"ours-{repeat}" / "workspace" / "server" / "simulate_job" for repeat in range(repeats)]
    return max(greatest_difference(load_adapter(run / FINAL)[0], expected) for run in runs)


if __name__ == "__main__":
    sys.exit(main())
