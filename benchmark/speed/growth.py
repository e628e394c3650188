"""Measures how the costs of a federation grow with the number of its sites.

    python -m benchmark.speed.growth [--sites 4 16 64 256] [--results 4 16 64 256] [--out benchmark/results/growth.json]

First whole simulations whose sites train on a few images each, so that nearly all is the federation's own cost, a few
sites at a time. Then one round of aggregation by each rule, in a process of its own on one core
(`benchmark.speed.aggregation_cost`). For each cost c of n sites the exponent b of c = a n^b is fitted.

An option without a number leaves that part of the result file as it is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from scipy.special import stdtrit

from benchmark.measurements.intervals import LEVEL, Estimate, slopes_of
from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import write_result
from benchmark.speed.aggregation_cost import NAMES, Shapes, experiment
from benchmark.speed.contenders import fresh, ours
from benchmark.speed.measure import Measured, measure, python_path
from benchmark.speed.work import Work
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import check_place
from pt_peft.schema import read_json
from pt_peft_flare.run_record import FILE_NAME

OUT = Path("benchmark/results/growth.json")
SITES = (4, 16, 64, 256)
ROUNDS = 2
"""The first one has the sites' start in it, so that the last one tells what a round takes."""
IMAGES = 16
"""Training images of a site: one batch."""
PROMPTS = {"LoRA": 0, "LoRA + deep prompts": 10}
"""Prompts in each block by the payload's name."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LIMIT_S = 1800
"""Seconds after which an aggregation is stopped and has failed."""


class Costs(TypedDict):
    """The costs of some numbers of sites."""

    sites: dict[int, dict[str, float]]
    """Each cost by its name, by the number of sites."""
    exponents: dict[str, Estimate | None]
    """See `exponent`."""


def exponent(costs: Mapping[int, float]) -> Estimate | None:
    """The exponent b of c = a n^b: the slope of the least squares line through (log n, log c), with its t interval.

    Args:
        costs: by the number of sites n; with three or more the exponent has an interval.

    Returns:
        None for fewer than two numbers of sites, or if a cost is 0.
    """
    if len(costs) < 2 or min(costs.values()) <= 0:
        return None
    x, y = np.log([*costs]), np.log([*costs.values()])
    slope = float(slopes_of(x, y))
    freedom = len(x) - 2
    if not freedom:
        return Estimate(slope)
    off = y - y.mean() - slope * (x - x.mean())
    error = float(np.sqrt(off @ off / freedom / np.square(x - x.mean()).sum()))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(slope, slope - half, slope + half)


def with_exponents(sites: dict[int, dict[str, float]]) -> Costs:
    """Adds the exponent of each cost."""
    names = next(iter(sites.values()), {})
    return {"sites": sites, "exponents": {name: exponent({n: sites[n][name] for n in sites}) for name in names}}


def simulated(work: Work, folder: Path, threads: int | None = None) -> tuple[Measured, list[float]]:
    """Runs a work as our federation in FLARE's simulator.

    Args:
        work: what to do.
        folder: takes the work and what the run writes.
        threads: sites that run at the same time; None for all.

    Returns:
        What it takes, and the seconds of each round by the server's record.

    Raises:
        UserError: if the run fails.
    """
    data, run = folder / "work", fresh(folder / "run")
    contender = ours(work, data, work.write(data), threads)
    contender.prepare(run)
    found = measure(contender.command, run, work.rounds, contender.environment)
    record = json.loads((run / "workspace" / "server" / "simulate_job" / FILE_NAME).read_bytes())
    return found, [one["seconds"] for one in record["rounds"]]


def federations(sites: Sequence[int], threads: int) -> dict[int, dict[str, float]]:
    """Measures simulations with some numbers of sites by `federation`."""
    found: dict[int, dict[str, float]] = {}
    for number in sites:
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            one = found[number] = federation(number, threads, Path(folder))
        print(f"{number} sites: a round {one['round_s']:.1f} s, server {one['server_pss_gb']:.2f} GB", flush=True)
    return found


def federation(sites: int, threads: int, folder: Path) -> dict[str, float]:
    """Measures a simulation.

    Args:
        sites: how many there are.
        threads: how many of them run at the same time.
        folder: as for `simulated`.

    Raises:
        UserError: if the run fails.
    """
    work = Work(sites=sites, rounds=ROUNDS, images=IMAGES, batch_size=IMAGES)
    found, seconds = simulated(work, folder, min(sites, threads))
    if found.server is None:
        raise UserError("benchmark.speed.growth: the run has not marked what its server does.")
    return {
        "round_s": seconds[-1],
        "between_rounds_s": found.gap_per_round_s,
        "wall_s": found.wall_s,
        "training_cpu_s": found.training_cpu_s,
        "server_cpu_s": found.server.cpu_s,
        "server_start_pss_gb": found.server.start_pss_gb,
        "server_end_pss_gb": found.server.end_pss_gb,
        "server_pss_gb": found.server.pss_gb,
        "peak_pss_gb": found.peak_pss_gb,
    }


def aggregations(results: Sequence[int], prompts: int, rules: Sequence[str] = NAMES) -> dict[str, Costs]:
    """Measures one round of aggregation by each rule; numbers of results that are too few for a rule are left out.

    Args:
        results: how many there are, each number for itself.
        prompts: deep prompts in each block; 0 for LoRA alone.
        rules: of `benchmark.speed.aggregation_cost`.

    Raises:
        UserError: if a measurement fails.
    """
    return {
        rule: with_exponents({n: _cost(rule, n, prompts) for n in results if _is_enough(rule, n)}) for rule in rules
    }


def _is_enough(rule: str, results: int) -> bool:
    try:
        experiment(rule, results, Shapes())
    except UserError:
        return False
    return True


def _cost(rule: str, results: int, prompts: int) -> dict[str, float]:
    options = [rule, str(results), "--prompts", str(prompts)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmark.speed.aggregation_cost", *options],
        capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, **python_path(), **ONE_THREAD},
    )  # fmt: skip
    if run.returncode:
        raise UserError(f"aggregation_cost {rule!r} {results}: exit code {run.returncode}; {run.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(run.stdout)
    print(f"{rule}, {results} results: {found['cpu_s']:.2f} s, {found['peak_mb']:.0f} MB", file=sys.stderr, flush=True)
    return found


def _before(out: Path) -> dict[str, object]:
    """What the result file has already. Raises UserError if it is none."""
    content = read_json(out) if out.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"--out: {out} is no result file; another name would be right.")
    return {**content}


def _write(out: Path, part: str, content: Mapping[str, object]) -> None:
    """Puts one part into the result file."""
    write_result(out, {**_before(out), part: content})


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sites", nargs="*", type=int, default=SITES, help="numbers of simulated sites (default: 4 16 64 256)"
    )
    parser.add_argument(
        "--results", nargs="*", type=int, default=SITES, help="numbers of results to aggregate (default: 4 16 64 256)"
    )
    parser.add_argument(
        "--threads", type=int, default=4, help="simulated sites that run at the same time (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_positive(options, "threads")
    for name in ("sites", "results"):
        if (numbers := [*getattr(options, name)]) != sorted({*numbers}) or any(number < 2 for number in numbers):
            raise UserError(f"--{name}: {' '.join(map(str, numbers))}; rising numbers from 2 on would be right.")
    check_place(options.out)
    _before(options.out)  # a file that cannot be added to is told before anything is measured
    if options.sites:
        work = {"rounds": ROUNDS, "images": IMAGES, "threads": options.threads}
        part = {"provenance": provenance(), "work": work}
        _write(options.out, "federations", {**part, **with_exponents(federations(options.sites, options.threads))})
    if options.results:
        part = {"provenance": provenance()}
        payloads = {name: aggregations(options.results, prompts) for name, prompts in PROMPTS.items()}
        _write(options.out, "aggregations", {**part, **payloads})


if __name__ == "__main__":
    sys.exit(main())
