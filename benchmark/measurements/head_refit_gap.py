"""Compares a federation with pooled training, the best site alone, and itself with other fields of the experiment.

    cd benchmark/results
    python -m benchmark.measurements.head_refit_gap head_refit.json head_refit_pooled.json head_refit_local.json

Reads what `benchmark.measurements.head_refit` has written, the federation's file first, and takes the folds that all of
them have. The federation's ridge classifier, its penalty chosen on validation images, is compared with each, and with
the trained classifiers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from benchmark.measurements.head_refit import METRICS, Result
from benchmark.measurements.intervals import Floats, over_seeds
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError, unlike_expected
from pt_peft.files import check_place
from pt_peft.schema import read_json

RIDGE = "ridge, validation"
WAYS = ("trained", RIDGE)
FIELDS_IN_COMMON = ("method", "rounds")


class Means(TypedDict):
    """What one model with one classifier reached, mean over folds."""

    trained_by: str
    """Also by which fields, for a further federation; so in `Difference`."""
    way: str
    balanced_accuracy: float
    accuracy: float
    auroc: float


class Difference(TypedDict):
    """By how much the federation's ridge classifier is ahead of another, mean of the folds' differences."""

    trained_by: str
    way: str
    metric: str
    ahead: float
    low: float | None
    """Ends of the 95 % t interval over folds; null for a single fold."""
    high: float | None


class Source(TypedDict):
    """What one file is of."""

    fields: list[str]
    """Those of the experiment that are not the preset's."""
    commits: list[str]
    """Of the code that made each fold."""


class Gap(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    sources: dict[str, Source]
    """By what rows have as ``trained_by``."""
    folds: list[int]
    means: list[Means]
    differences: list[Difference]


def gap(results: Sequence[Result]) -> Gap:
    """Compares the first of `results` with the others, on the folds that all of them have.

    Raises:
        UserError: if the first is of no federation, two are of the same, or they share too little.
    """
    by: dict[str, Result] = {}
    for one in results:
        name, fields = one["settings"]["trained_by"], one["settings"]["fields"]
        by[", ".join((name, *fields)) if name in by else name] = one
    first = next(iter(by))
    if len(by) < len(results) or first != "federation":
        given = ", ".join(one["settings"]["trained_by"] for one in results)
        raise UserError(
            f"The files are of {given}; the federation's first, and others by who trains or by fields, would be right."
        )
    for field in FIELDS_IN_COMMON:
        values = {name: one["settings"][field] for name, one in by.items()}
        if len(set(values.values())) > 1:
            raise UserError(f"The files differ in '{field}': {values}; the same would be right.")
    scores = {name: {fold["fold"]: fold["ways"] for fold in one["folds"]} for name, one in by.items()}
    folds = sorted(set.intersection(*(set(found) for found in scores.values())))
    if not folds:
        have = "; ".join(f"{name} {', '.join(map(str, found))}" for name, found in scores.items())
        raise UserError(f"The files have no fold in common: {have}.")

    def over_folds(name: str, way: str, metric: str) -> Floats:
        return np.array([scores[name][fold][way][metric] for fold in folds])

    means: list[Means] = []
    differences: list[Difference] = []
    for name in by:
        for way in WAYS:
            reached = {metric: float(over_folds(name, way, metric).mean()) for metric in METRICS}
            means.append(cast(Means, {"trained_by": name, "way": way, **reached}))
            for metric in METRICS if (name, way) != (first, RIDGE) else ():
                found = over_seeds((over_folds(first, RIDGE, metric) - over_folds(name, way, metric)).tolist())
                ends = {"ahead": found.value, "low": found.low, "high": found.high}
                differences.append(cast(Difference, {"trained_by": name, "way": way, "metric": metric, **ends}))
    sources: dict[str, Source] = {
        name: {
            "fields": one["settings"]["fields"],
            "commits": [fold["commit"] for fold in one["folds"] if fold["fold"] in folds],
        }
        for name, one in by.items()
    }
    return {
        "provenance": provenance(),
        "sources": sources,
        "folds": folds,
        "means": means,
        "differences": differences,
    }


def _read(path: Path) -> Result:
    content: Any = read_json(path)
    try:
        for fold in content["folds"]:
            float(fold["ways"][RIDGE]["auroc"])
        ", ".join((content["settings"]["trained_by"], *content["settings"]["fields"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no result of head_refit ({unlike_expected(error)}).") from None
    return content


@command
def main(arguments: list[str] | None = None) -> None:
    """Compares, writes the result file and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.head_refit_gap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", help="results of head_refit, the federation's first")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.out:
        check_place(options.out)
    result = gap([_read(path) for path in options.files])
    header = ["trained by", "classifier", *(name.replace("_", " ") for name in METRICS)]
    lines = [[row["trained_by"], row["way"], *(f"{row[name]:.3f}" for name in METRICS)] for row in result["means"]]
    shown = [markdown_table(header, lines), "", "By how much the federation's ridge classifier is ahead:", ""]
    lines = []
    for row in result["differences"]:
        interval = f" [{row['low']:+.3f}, {row['high']:+.3f}]" if row["low"] is not None else ""
        lines.append([row["trained_by"], row["way"], row["metric"].replace("_", " "), f"{row['ahead']:+.3f}{interval}"])
    shown.append(markdown_table(["trained by", "classifier", "metric", "ahead"], lines))
    finish(options, result, "\n".join(shown))


if __name__ == "__main__":
    sys.exit(main())
