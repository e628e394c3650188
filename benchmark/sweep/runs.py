"""One cell of a suite from its experiment to its result."""

import io
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from distributed import get_worker

from benchmark.measurements.origin import provenance
from benchmark.measurements.peak_memory import PeakMemory
from benchmark.oracle.baselines import majority, pooled
from benchmark.oracle.evaluation import Predictions, predict
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from benchmark.sweep.cells import Cell
from benchmark.sweep.engines import ENGINES, Outcome, mean_scalars, scalars
from benchmark.sweep.result_files import EQUAL
from pt_peft.data.site_data import SiteData
from pt_peft.errors import UserError
from pt_peft.federation.local_round import starting_model
from pt_peft.training.trainer import LocalTrainer

FIELDS = ("exchanged_parameters", "wire_bytes", "bytes_in", "bytes_out", "rounds", "final", "verification")
"""What a federated run finds out."""
_one_at_a_time = threading.Lock()
"""torch's threads and generator belong to the process."""


@dataclass(frozen=True)
class Result:
    """What a cell ends with."""

    record: dict
    """The content of its JSON file."""
    predictions: bytes | None = None
    """That of its ``.npz`` file: ``logits`` float16 (N,K), ``labels``, ``site``; of finished federated runs."""


def run_cell(cell: Cell, engine: str, verify: bool) -> Result:
    """Runs `cell`; never raises but for what ends the process.

    Args:
        verify: whether it is run by both engines, and fails if their adapters differ.
    """
    started = time.monotonic()
    record = blank(cell, engine)
    predictions = None
    clock = _Clock()
    with (
        _one_at_a_time,
        PeakMemory() as memory,
        tempfile.TemporaryDirectory(prefix="pt-peft-cell-", dir=_scratch()) as scratch,
    ):
        try:
            with clock("preparation"):
                trainer = make_trainer(cell.experiment, cell.site)
                sites = load_sites(cell.experiment, cell.site, list(cell.experiment.federation.sites))
            if cell.baseline:
                record |= _without_federation(cell, trainer, sites, clock)
            else:
                fields, predictions = _federated(cell, engine, verify, trainer, sites, Path(scratch), clock)
                record |= fields
            record["status"] = "finished"
        except UserError as error:
            record["reason"] = str(error)
        except Exception as error:  # one cell must not end the sweep
            record["reason"] = f"{type(error).__name__}: {error}"
    seconds = {"total": time.monotonic() - started, **clock.seconds}
    record["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    record["peak_memory_bytes"] = memory.bytes
    return Result(record, predictions)


def _scratch() -> str | None:
    """Dask's own folder of the worker that this runs in: it removes what a killed worker leaves there."""
    try:
        return get_worker().local_directory
    except ValueError:  # no worker
        return None


def blank(cell: Cell, engine: str) -> dict:
    """The record of a cell of which nothing is known yet."""
    known = {
        "status": "failed",
        "reason": None,
        "name": cell.name,
        "axes": cell.axes,
        "engine": engine,
        "experiment": cell.experiment.model_dump(mode="json"),
        "provenance": provenance(),
    }
    found = ("rows",) if cell.kind == "baselines" else FIELDS
    return known | dict.fromkeys((*found, "seconds", "peak_memory_bytes"))


def _federated(
    cell: Cell,
    engine: str,
    verify: bool,
    trainer: LocalTrainer,
    sites: Mapping[str, SiteData],
    scratch: Path,
    clock: "_Clock",
) -> tuple[dict, bytes | None]:
    """Raises UserError."""
    with clock("training"):
        outcome = _run(engine, cell, trainer, sites, scratch)
    verification = None
    if verify:
        other = next(name for name in ENGINES if name != engine)
        with clock("verification"):
            again = _run(other, cell, trainer, sites, scratch)
        verification = {
            "engine": other,
            "max_difference": greatest_difference(outcome.final.tensors, again.final.tensors),
        }
        if not verification["max_difference"] <= EQUAL:
            raise UserError(
                f"the adapters of the engines '{engine}' and '{other}' differ by {verification['max_difference']:.1e}; at most "
                f"{EQUAL:g} would be right."
            )
    with clock("evaluation"):
        final = {"val": None}
        if cell.kind == "tuning" or any(len(data.val) for data in sites.values()):
            val = predict(trainer, outcome.final.tensors, outcome.final.kept, sites, "val")
            final["val"] = _validation(_reported(val.metrics(cell.experiment.data.task))["sites"])
        test = None
        if cell.kind == "cells":  # nothing is chosen on test images
            test = _rounded(predict(trainer, outcome.final.tensors, outcome.final.kept, sites, "test"))
            final["test"] = _reported(test.metrics(cell.experiment.data.task))
    bytes_in = sum(one["bytes_in"] for one in outcome.rounds)
    bytes_out = sum(one["bytes_out"] for one in outcome.rounds)
    sent = sum(spec.size for spec in trainer.exchange.up(0).values())
    found = (sent, bytes_in + bytes_out, bytes_in, bytes_out, outcome.rounds, final, verification)
    return dict(zip(FIELDS, found, strict=True)), test and _packed(test)


def _run(engine: str, cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], scratch: Path) -> Outcome:
    folder = scratch / engine
    folder.mkdir()
    return ENGINES[engine](cell, trainer, sites, folder)


def _without_federation(cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], clock: "_Clock") -> dict:
    """The cell's baseline, with as many epochs as the federation. Raises UserError."""
    task = trainer.experiment.data.task
    data = {"pooled": pooled(sites)} if cell.baseline == "pooled" else dict(sites)
    with clock("training"):
        models = {}
        for name, one in data.items():
            final = federate(trainer, {name: one})
            models[name] = starting_model(trainer, final.tensors, final.kept[name])
    with clock("evaluation"):
        if cell.kind == "tuning":
            own = {name: trainer.evaluate(models[name], one.val) for name, one in data.items() if len(one.val)}
            return {"final": {"val": _validation({name: scalars(metrics) for name, metrics in own.items()})}}
        found = {name: predict(trainer, tensors, {}, sites, "test") for name, tensors in models.items()}
        if cell.baseline == "pooled":
            found["majority class"] = majority(trainer.experiment.data, sites)
        else:
            found = {f"local {name}": predictions for name, predictions in found.items()}
        return {
            "rows": [
                {"name": name, "test": _reported(predictions.metrics(task))} for name, predictions in found.items()
            ]
        }


def _validation(of_sites: dict[str, dict]) -> dict:
    """What a trial is judged by. Raises UserError if there is nothing."""
    if not of_sites:
        raise UserError("no site has validation images, which the trial is judged by.")
    return {"mean": mean_scalars(list(of_sites.values())), "sites": of_sites}


def _reported(metrics: dict) -> dict:
    return {
        "pooled": metrics["pooled"],
        "sites": {name: scalars(of_site) for name, of_site in metrics["sites"].items()},
    }


def _rounded(predictions: Predictions) -> Predictions:
    """As they are kept, so that whoever reads them finds the same metrics."""
    return replace(predictions, logits=predictions.logits.astype(np.float16))


def _packed(predictions: Predictions) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, logits=predictions.logits, labels=predictions.labels, site=predictions.site)
    return file.getvalue()


class _Clock:
    """Seconds by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = time.monotonic() - started
