"""Compares a federation, pooled training and the best site alone, with the trained classifier and with a solved one.

    python -m benchmark.measurements.head_refit_gap benchmark/results/head_refit*.json --out FILE

Reads what `benchmark.measurements.head_refit` has written, a file for each of those who train, and takes the folds that
all of them have. The federation's ridge classifier, its penalty chosen on validation images, is compared with each.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from benchmark.measurements.head_refit import METRICS, TRAINED_BY, Result
from benchmark.measurements.intervals import over_seeds
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import check_place
from pt_peft.schema import read_json

WAYS = ("trained", "ridge, validation")
FIELDS_IN_COMMON = ("method", "rounds")


class Row(TypedDict):
    """One model with one classifier: means over folds, and by how much the federation's ridge classifier is ahead."""

    trained_by: str
    way: str
    balanced_accuracy: float
    accuracy: float
    auroc: float
    ahead: float
    """In balanced accuracy, mean of the folds' differences, with the ends of the 95 % t interval over folds."""
    low: float | None
    high: float | None


class Gap(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    sources: dict[str, list[str]]
    """By who trains, the commits that made its folds."""
    folds: list[int]
    rows: list[Row]


def gap(results: Sequence[Result]) -> Gap:
    """Compares `results` on the folds that all of them have.

    Raises:
        UserError: if there is no federation among them, or two of the same, or they share too little.
    """
    by = {one["settings"]["trained_by"]: one for one in results}
    if len(by) < len(results) or "federation" not in by:
        given = ", ".join(one["settings"]["trained_by"] for one in results)
        raise UserError(f"The files are of {given}; one of the federation, and one each of others, would be right.")
    for field in FIELDS_IN_COMMON:
        values = {name: one["settings"][field] for name, one in by.items()}
        if len(set(values.values())) > 1:
            raise UserError(f"The files differ in '{field}': {values}; the same would be right.")
    scores = {name: {fold["fold"]: fold["ways"] for fold in one["folds"]} for name, one in by.items()}
    folds = sorted(set.intersection(*(set(found) for found in scores.values())))
    if not folds:
        raise UserError(f"The files have no fold in common: { ({name: [*found] for name, found in scores.items()}) }.")
    ours = [scores["federation"][fold][WAYS[1]]["balanced_accuracy"] for fold in folds]
    rows: list[Row] = []
    for name in sorted(by, key=TRAINED_BY.index):
        for way in WAYS:
            values = {metric: np.array([scores[name][fold][way][metric] for fold in folds]) for metric in METRICS}
            ahead = over_seeds((np.array(ours) - values["balanced_accuracy"]).tolist())
            means = {metric: float(value.mean()) for metric, value in values.items()}
            difference = {"ahead": ahead.value, "low": ahead.low, "high": ahead.high}
            rows.append(cast(Row, {"trained_by": name, "way": way, **means, **difference}))
    sources = {name: [fold["commit"] for fold in one["folds"] if fold["fold"] in folds] for name, one in by.items()}
    return {"provenance": provenance(), "sources": sources, "folds": folds, "rows": rows}


@command
def main(arguments: list[str] | None = None) -> None:
    """Compares, writes the result file and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.head_refit_gap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", help="results of head_refit")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.out:
        check_place(options.out)
    result = gap([cast(Result, read_json(path)) for path in options.files])
    header = ["trained by", "classifier", *(name.replace("_", " ") for name in METRICS), "federation's ridge ahead by"]
    lines: list[list[str]] = []
    for row in result["rows"]:
        interval = f" [{row['low']:+.3f}, {row['high']:+.3f}]" if row["low"] is not None else ""
        means = [f"{row[name]:.3f}" for name in ("balanced_accuracy", "accuracy", "auroc")]
        lines.append([row["trained_by"], row["way"], *means, f"{row['ahead']:+.3f}{interval}"])
    finish(options, result, markdown_table(header, lines))


if __name__ == "__main__":
    sys.exit(main())
