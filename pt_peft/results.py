"""What a run, or the cells of a suite, reached: flat records, as ``pandas.DataFrame`` takes them. Imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_peft import schema
from pt_peft.errors import UserError, unlike_expected
from pt_peft.files import RUN_FOLDERS

METRICS = "metrics.json"
SPLITS = ("val", "test", "own_val", "own_test")
"""Of a run's final evaluation; ``own_…`` are of each site's own model."""

Record = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Results:
    """The results of a run or of a suite. `read` makes them."""

    metrics: Sequence[Record]
    """A record for each evaluation of a model on images: ``rounds`` (that were finished before), ``split``, ``of`` (a
    site, ``mean`` over sites, or ``pooled`` over all images) and the metrics, null where one is undefined or was not
    measured. Those of a suite begin with the cell's ``name`` and its place in the grid."""
    training: Sequence[Record]
    """A record for each site in each round: ``round`` (from 0), ``site``, and numbers of its report such as
    ``train_loss``, ``seconds``, ``bytes_out``. Those of a suite begin as those above."""

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """Reads the results of a run or of a suite.

        Args:
            path: ``metrics.json``; the folder of a run, as FLARE's simulator or a job download leaves it; or the file
                of a suite, ``benchmark/results/NAME.jsonl``.

        Raises:
            UserError: if it is none of these, or of an earlier version.
        """
        file = _file(Path(path))
        try:
            one_run = file.suffix != ".jsonl"
            runs: list[tuple[Record, _Run]] = [({}, _Run(schema.read_json(file)))] if one_run else [*_cells(file)]
            return cls(
                [{**place, **record} for place, run in runs for record in run.metrics()],
                [{**place, **record} for place, run in runs for record in run.training()],
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(
                f"{file}: holds no results of a run or suite, or of an earlier version ({unlike_expected(error)})."
            ) from None


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = next((path / place / METRICS for place in RUN_FOLDERS if (path / place / METRICS).is_file()), None)
    if found is None:
        raise UserError(f"{path}: is neither a file of results nor a run that has ended (it has no {METRICS}).")
    return found


def _cells(file: Path) -> Iterator[tuple[Record, "_Run"]]:
    """The place in the grid, and the content, of each finished cell of a suite."""
    whole = file.read_text(encoding="utf-8").split("\n")[:-1]  # a sweep may be writing the last
    last = {line.get("name"): line for line in map(json.loads, whole)}
    for line in last.values():
        if line["kind"] == "cell":
            yield {"name": line["name"], **line["axes"]}, _Run(line)


class _Run:
    """A ``metrics.json``, or a line of a suite's file; what they call alike, they mean alike."""

    def __init__(self, content: Any):
        self._rounds: Sequence[Any] = content["rounds"]
        self._final: Mapping[str, Any] = content["final"] or {}

    def metrics(self) -> Iterator[Record]:
        for one in self._rounds:
            reports = {site: report["val"] for site, report in one["sites"].items()}
            summary = one["val_at_start"] if "val_at_start" in one else {"mean": one["val"]}
            yield from _evaluations(one["round"], "val", reports, summary)
        for split in SPLITS:
            found: Mapping[str, Any] | None = self._final.get(split)
            reports: Mapping[str, Any] = found.get("sites", {}) if found else {}
            if "sites" in self._final:  # a run's, whose sites come first
                reports = {site: report[split] for site, report in self._final["sites"].items()}
            yield from _evaluations(len(self._rounds), split, reports, found)

    def training(self) -> Iterator[Record]:
        for one in self._rounds:
            for site, report in one["sites"].items():
                yield {"round": one["round"], "site": site, **_numbers(report)}


def _evaluations(
    rounds: int, split: str, reports: Mapping[str, Any], summary: Mapping[str, Any] | None
) -> Iterator[Record]:
    means = {name: summary.get(name) for name in ("mean", "pooled")} if summary else {}
    for who, metrics in {**reports, **means}.items():
        if metrics is not None:
            yield {"rounds": rounds, "split": split, "of": who, **_numbers(metrics)}


def _numbers(fields: Mapping[str, Any]) -> Record:
    """The fields that are one number, or null."""
    return {name: value for name, value in fields.items() if value is None or isinstance(value, int | float)}
