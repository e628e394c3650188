"""Runs a suite: every cell of its grid that has no finished result yet.

Results are appended to one file, which `report` reads. After a crash the same command goes on; it runs failed cells
again. Ends with exit code 1 if a cell failed.

Example:
    python -m benchmark run paper --engine reference --only data=ham10000 --only method=lora,full
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pt_peft.errors import UserError

if TYPE_CHECKING:
    from benchmark.sweep.suite import Suite

RESULTS = Path(__file__).parents[1] / "results"
SUFFIX = ".jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("suite", help="name of a suite in benchmark/suites, or path of a .yaml file")
    parser.add_argument(
        "--out", type=Path, help="result file, ending in .jsonl (default: benchmark/results/SUITE.jsonl)"
    )
    parser.add_argument(
        "--engine",
        choices=("flare", "reference"),
        default="flare",
        help="FLARE's simulator, or the plain loop that ends with the same adapter (default: %(default)s)",
    )
    parser.add_argument(
        "--verify",
        type=int,
        metavar="N",
        help="run N random cells by both engines (default: 2 with --engine reference, 0 with flare or --compile)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="train through torch's compiler: faster, and other in the last digits"
    )
    parser.add_argument(
        "--jobs", type=int, help="cells at a time (default: as many as this machine has cores and memory for)"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="run the cells on the workers of this Dask scheduler")
    add_only(parser, "run a part of the suite")


def add_only(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares ``--only``, which does `what`."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=VALUE[,VALUE]",
        help=f"{what}, such as data=ham10000; may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError if the suite cannot be run, and after the last cell if any failed."""
    from benchmark.sweep.suite import Suite
    from benchmark.sweep.sweep import Sweep

    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; at least 1 would be right.")
    compiled = options.compile
    verify = options.verify if options.verify is not None else 2 * (options.engine == "reference" and not compiled)
    if verify < 0:
        raise UserError(f"--verify is {verify}; at least 0 would be right.")
    if verify and compiled:
        raise UserError(
            f"--verify is {verify} with --compile, but two compilations give other digits; 0 would be right."
        )
    suite = Suite.read(options.suite)
    wanted = parts(options.only, suite)
    path = options.out or RESULTS / f"{suite.name}{SUFFIX}"
    if path.suffix != SUFFIX:
        raise UserError(f"--out is {path}; the name of a file that ends in {SUFFIX} would be right.")
    Sweep(suite, path, options.engine, verify, compiled=compiled).run(
        options.jobs,
        options.cluster,
        lambda axes: is_part(axes, wanted),
    )
    print(f"finished: {path}; {shlex.join(('python', '-m', 'benchmark', 'report', str(path)))}")


def is_part(axes: Mapping[str, object], wanted: Mapping[str, set[str]]) -> bool:
    """Whether a place of the grid, by the values of some of its axes, is among those that ``--only`` names."""
    return all(str(axes[axis]) in values for axis, values in wanted.items() if axis in axes)


def parts(given: list[str], suite: "Suite") -> Mapping[str, set[str]]:
    """Reads ``--only``: values by axis. Raises UserError for an axis or a value that the suite lacks."""
    from benchmark.oracle.baselines import BASELINES

    known = {
        "data": set(suite.data),
        "partition": set(suite.partitions),
        "backbone": set(suite.backbones),
        "variant": set(suite.variants),
        "method": {*suite.methods, *BASELINES},
        "seed": set(map(str, suite.seeds)),
    }
    wanted: dict[str, set[str]] = {}
    for one in given:
        axis, _, values = one.partition("=")
        if axis not in known:
            raise UserError(f"--only: '{one}' is not of the form AXIS=VALUE with one of the axes {', '.join(known)}.")
        wanted.setdefault(axis, set()).update(values.split(","))
        if unknown := sorted(wanted[axis] - known[axis]):
            raise UserError(f"--only: the suite has no {axis} '{unknown[0]}'; it has {', '.join(sorted(known[axis]))}.")
    return wanted
