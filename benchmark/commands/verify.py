"""Runs finished cells of a suite again, drawn at random, and compares them with the results: anyone can check them.

Each is trained from scratch on this machine, by its recorded experiment, on the images and weights that this clone's
suite names. What was counted must be equal, and so what a run's name says of its experiment; metrics may differ by the
tolerance, as another processor, thread count or version of a library rounds otherwise. The result file is only read,
and refused where `report` would refuse it. Ends with exit code 1 if a cell differs or could not be run again.

Example:
    python -m benchmark verify claims --cells 3 --seed 1 --out verified.json
"""

import argparse
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.commands.report import result_file
from benchmark.commands.run import add_only, is_part, parts
from pt_peft.errors import UserError
from pt_peft.files import check_place, sha256_of

if TYPE_CHECKING:
    from benchmark.sweep.rerun import Comparison

TOLERANCE = 1.0
"""Percentage points."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("suite", help="name of a suite with results in benchmark/results, or path of a .jsonl file")
    parser.add_argument("--cells", type=int, default=3, help="cells and baselines to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of the draw (default: a random one, which is printed)")
    add_only(parser, "draw from a part of the suite")
    parser.add_argument(
        "--engine", choices=("flare", "reference"), help="what runs them (default: what ran each before)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="POINTS",
        help="by how many percentage points accuracy, balanced accuracy and AUROC may differ (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write, with the provenance of both runs")


def run(options: argparse.Namespace) -> None:
    """Raises UserError if nothing can be run, and after the last cell if any is different or could not be run."""
    from benchmark.measurements.results import write_result
    from benchmark.report.results import checked
    from benchmark.sweep.rerun import FINE, Comparison, compare, draw
    from benchmark.sweep.result_file import read, suite_of

    if options.cells < 1:
        raise UserError(f"--cells is {options.cells}; at least 1 would be right.")
    if not 0 <= options.tolerance <= 100:
        raise UserError(f"--tolerance is {options.tolerance:g}; percentage points from 0 to 100 would be right.")
    if options.out:
        check_place(options.out)
    path = result_file(options.suite)
    contents = read(path)
    checked(path, contents)
    suite = suite_of(contents, path)
    wanted = parts(options.only, suite)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    drawn = draw(contents, options.cells, seed, lambda axes: is_part(axes, wanted))
    if not drawn:
        raise UserError(f"{path}: has no finished cell or baseline{' with all of these values' if wanted else ''}.")
    print(f"{len(drawn)} of {path}, drawn with --seed {seed}", flush=True)
    asked = {"cells": options.cells, "seed": seed, "only": options.only, "tolerance_points": options.tolerance}
    about = {"suite": suite.name, "results": {"file": path.name, "sha256": sha256_of(path)}, "asked": asked}
    compared: list[Comparison] = []
    for one in compare(suite, contents, drawn, options.engine, options.tolerance):
        compared.append(one)
        print(line(one), flush=True)
        if options.out:
            write_result(options.out, {**about, "compared": compared})
    numbers = [f"{sum(one.verdict == verdict for one in compared)} {verdict}" for verdict in FINE]
    if bad := [one for one in compared if one.verdict not in FINE]:
        raise UserError(
            f"{len(bad)} of {len(compared)} cells are different or could not be rerun; the first, '{bad[0].name}': "
            f"{bad[0].verdict}: {', '.join(bad[0].reasons)}"
        )
    print(f"{len(compared)} cells: {', '.join(numbers)} within {options.tolerance:g} points")


def line(one: "Comparison") -> str:
    """One comparison for a person."""
    lines = [f"{one.verdict:10} {one.name}"]
    for metric in one.metrics:
        values = ["-" if value is None else f"{100 * value:.2f}" for value in (metric.recorded, metric.rerun)]
        if metric.points:
            lines.append(
                f"{metric.model} {metric.metric}: {values[0]} recorded, {values[1]} here ({metric.points:+.2f})"
            )
        else:
            lines.append(f"{metric.model} {metric.metric}: {values[0]}")
    if one.agreement is not None:
        lines.append(
            f"predictions agree on {100 * one.agreement:.2f} % of the test images; logits differ by up to "
            f"{one.max_logit_difference:g}"
        )
    if one.reasons:
        lines.append(("not equal: " if one.rerun else "") + ", ".join(one.reasons))
    return "\n           ".join([*lines, *(f"note: {note}" for note in one.notes)])
