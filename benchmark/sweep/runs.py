"""Runs one cell of a suite, from its experiment to its record."""

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import get_worker

from benchmark.measurements.peak_memory import PeakMemory
from benchmark.measurements.provenance import provenance
from benchmark.oracle.baselines import majority, pooled
from benchmark.oracle.evaluation import predict
from benchmark.oracle.predictions import Predictions
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from benchmark.sweep.cells import Cell
from benchmark.sweep.engines import ENGINES, Outcome, mean_scalars, scalars
from benchmark.sweep.records import (
    EQUAL,
    AnyRun,
    BaselineRecord,
    BaselineRow,
    CellRecord,
    Engine,
    FailureRecord,
    Final,
    FinalTest,
    RunProvenance,
    Scalars,
    StageBytes,
    TrialRecord,
    Validation,
    Verification,
)
from pt_peft.data.site_data import SiteData
from pt_peft.errors import UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Task
from pt_peft.experiment.statistics import stage_bytes, stages
from pt_peft.federation.local_round import starting_model
from pt_peft.federation.reports import SplitMetrics
from pt_peft.statistics.moments import class_counts
from pt_peft.training.trainer import LocalTrainer

_one_at_a_time = threading.Lock()
"""torch's threads and generator belong to the process."""
_RECORDS = {"cell": CellRecord, "trial": TrialRecord, "baseline": BaselineRecord}


def run_cell(cell: Cell, engine: Engine, verify: bool) -> AnyRun:
    """Runs `cell`; an error becomes a `FailureRecord`.

    Args:
        cell: what is run.
        engine: what runs it.
        verify: whether it is run by both engines, and fails if their adapters differ.
    """
    started = time.monotonic()
    found: dict[str, Any] = {}
    reason: str | None = None
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
                found = _without_federation(cell, trainer, sites, clock)
            else:
                found = _federated(cell, engine, verify, trainer, sites, Path(scratch), clock)
            found["precision"] = trainer.precision
        except UserError as error:
            reason = str(error)
        except Exception as error:  # one cell must not end the sweep
            reason = f"{type(error).__name__}: {error}"
    seconds = {"total": time.monotonic() - started, **clock.seconds}
    known = _known(cell, engine) | {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_memory_bytes": memory.bytes,
    }
    if reason is not None:
        return FailureRecord(**known, run_kind=cell.kind, reason=reason)
    return _RECORDS[cell.kind](**known, **found)


def failure(cell: Cell, engine: Engine, reason: str) -> FailureRecord:
    """The record of a cell whose process told nothing."""
    return FailureRecord(**_known(cell, engine), seconds={}, peak_memory_bytes=None, run_kind=cell.kind, reason=reason)


def _known(cell: Cell, engine: Engine) -> dict[str, Any]:
    """The fields of a record that are known before the run."""
    return {
        "name": cell.name,
        "axes": cell.axes,
        "engine": engine,
        "experiment": cell.experiment.model_dump(mode="json"),
        "site_data": cell.site.data.meaning(),
        "compiled": cell.site.compile,
        "provenance": RunProvenance.model_validate(provenance()),
    }


def _scratch() -> str | None:
    """The folder of the Dask worker that this runs in: Dask removes what a killed worker leaves there."""
    try:
        return get_worker().local_directory
    except ValueError:  # no worker
        return None


def _federated(
    cell: Cell,
    engine: Engine,
    verify: bool,
    trainer: LocalTrainer,
    sites: Mapping[str, SiteData],
    scratch: Path,
    clock: "_Clock",
) -> dict[str, Any]:
    """Fields of a cell's or a trial's record. Raises UserError."""
    with clock("training"):
        outcome = _run(engine, cell, trainer, sites, scratch)
    verification = None
    if verify:
        with clock("verification"):
            verification = _verified(engine, outcome, cell, trainer, sites, scratch)
    task, final = cell.experiment.data.task, outcome.final
    with clock("evaluation"):
        val = None
        if cell.kind == "trial" or any(len(data.val) for data in sites.values()):
            predicted = predict(trainer, final.tensors, final.kept, sites, "val")
            metrics = predicted.metrics(task)
            sites_metrics = {name: scalars(one) for name, one in metrics["sites"].items()}
            val = _validation(sites_metrics, scalars(metrics["pooled"]))
        if cell.kind == "trial":  # nothing is chosen on test images
            return {"val": val}
        test = _as_kept(predict(trainer, final.tensors, final.kept, sites, "test"))
    return {
        "exchanged_parameters": sum(spec.size for spec in trainer.exchange.up(0).values()),
        "rounds": outcome.rounds,
        "statistics": tuple(_statistics(cell.experiment, trainer.exchange, sites)),
        "class_counts": None if task == "multilabel" else _class_counts(sites, len(cell.experiment.data.classes)),
        "final": Final(val=val, test=_test(test, task)),
        "verification": verification,
        "predictions": test,
    }


def _class_counts(sites: Mapping[str, SiteData], classes: int) -> dict[str, list[int]]:
    """Training images of each class, by site."""
    return {name: class_counts(data.train.labels, classes).astype(int).tolist() for name, data in sites.items()}


def _statistics(experiment: Experiment, exchange: Exchange, sites: Iterable[str]) -> Iterator[StageBytes]:
    """The bytes of each stage of statistics, which follow from the experiment."""
    at_sites = [exchange.at_rank(experiment.federation.lora_ranks.get(site)) for site in sites]
    for stage in stages(experiment):
        nbytes = [stage_bytes(experiment, one, stage) for one in at_sites]
        down, up = sum(one.down for one in nbytes), sum(one.up for one in nbytes)
        yield StageBytes(when=stage.when, stage=stage.name, bytes_in=down, bytes_out=up)


def _verified(
    engine: Engine,
    outcome: Outcome,
    cell: Cell,
    trainer: LocalTrainer,
    sites: Mapping[str, SiteData],
    scratch: Path,
) -> Verification:
    """Runs the other engine. Raises UserError if its final aggregate differs."""
    other: Engine = "reference" if engine == "flare" else "flare"
    again = _run(other, cell, trainer, sites, scratch)
    difference = greatest_difference(outcome.final.tensors, again.final.tensors)
    if not difference <= EQUAL:
        raise UserError(
            f"the adapters of the engines '{engine}' and '{other}' differ by {difference:.1e}; at most {EQUAL:g} would "
            "be right."
        )
    return Verification(engine=other, max_difference=difference)


def _run(engine: Engine, cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], scratch: Path) -> Outcome:
    folder = scratch / engine
    folder.mkdir()
    return ENGINES[engine](cell, trainer, sites, folder)


def _without_federation(
    cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], clock: "_Clock"
) -> dict[str, Any]:
    """Fields of the record of a baseline or its trial, which has as many epochs as the federation. Raises UserError."""
    task = trainer.experiment.data.task
    data = {"pooled": pooled(sites)} if cell.baseline == "pooled" else dict(sites)
    with clock("training"):
        models = {}
        for name, one in data.items():
            final = federate(trainer, {name: one})
            models[name] = starting_model(trainer, final.tensors, final.kept[name])
    with clock("evaluation"):
        if cell.kind == "trial":
            own = {name: trainer.evaluate(models[name], one.val) for name, one in data.items() if len(one.val)}
            found = {name: scalars(metrics) for name, metrics in own.items()}
            return {"val": _validation(found, found.get("pooled"))}
        found = {name: predict(trainer, tensors, {}, sites, "test") for name, tensors in models.items()}
        if cell.baseline == "pooled":
            found["majority class"] = majority(trainer.experiment.data, sites)
        else:
            found = {f"local {name}": predictions for name, predictions in found.items()}
        return {"rows": [BaselineRow(name=name, test=_test(one, task)) for name, one in found.items()]}


def _validation(sites: dict[str, Scalars], pooled: Scalars | None) -> Validation:
    """What a trial is judged by. Raises UserError if there is nothing."""
    mean = mean_scalars(list(sites.values()))
    if mean is None:
        raise UserError("no site has validation images, by which a trial is judged.")
    return Validation(mean=mean, sites=sites, pooled=pooled)


def _test(predictions: Predictions, task: Task) -> FinalTest:
    metrics = predictions.metrics(task)
    return FinalTest(
        pooled=SplitMetrics(**metrics["pooled"]),
        sites={name: scalars(one) for name, one in metrics["sites"].items()},
    )


def _as_kept(predictions: Predictions) -> Predictions:
    """In float16, as they are kept, so that a reader finds the same metrics."""
    return replace(predictions, logits=predictions.logits.astype(np.float16))


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
