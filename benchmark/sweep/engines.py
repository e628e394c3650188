"""The two engines that run a federation: FLARE's simulator, and the plain loop that ends with the same adapter."""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmark.oracle.reference import Federated, federate
from benchmark.sweep import kill_with_parent
from benchmark.sweep.cells import Cell
from benchmark.sweep.records import Engine, Round, Scalars, SiteRound, metric_of
from pt_peft.data.site_data import SiteData
from pt_peft.errors import UserError
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.tensors import Tensors
from pt_peft.federation.local_round import LocalRound
from pt_peft.model.adapter_file import load_adapter
from pt_peft.schema import read_json
from pt_peft.training.trainer import LocalTrainer
from pt_peft.worker.host_lookup import HOST_VARIABLE
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.local_adapter import LOCAL_ADAPTER
from pt_peft_flare.job_folder import write_job, write_workspace
from pt_peft_flare.learner import FINAL_ADAPTER
from pt_peft_flare.persistor import FINAL
from pt_peft_flare.run_record import FILE_NAME

LOG = "simulator.log"
LIMIT_S = 6 * 3600
"""After so many seconds a run is killed; the experiment's own deadlines are tighter."""


@dataclass(frozen=True)
class Outcome:
    """What a federation did."""

    rounds: list[Round]
    final: Federated


def run_reference(cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], folder: Path) -> Outcome:
    """Runs `cell` in this process.

    Raises:
        UserError: if it fails, or for an experiment with ``encryption``, whose bytes the loop cannot count.
    """
    if cell.experiment.encryption:
        raise UserError(
            "experiment: field 'encryption' is set, but the plain loop (engine 'reference') encrypts nothing; the "
            "engine 'flare' does."
        )
    recorder = _Recorder(trainer, sites)
    final = federate(trainer, sites, observer=recorder)
    return Outcome(recorder.rounds, final)


def run_flare(cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], folder: Path) -> Outcome:
    """Runs `cell` in FLARE's simulator.

    Args:
        cell: what is run.
        trainer: as a site has it.
        sites: data by name.
        folder: takes job, workspace and log.

    Raises:
        UserError: if the job did not finish, with the last line of its log, or did without one of a site's results.
    """
    write_job(cell.experiment, folder / "job")
    workspace = folder / "workspace"
    write_workspace(cell.site, workspace)
    _simulate(folder, len(sites))
    server = workspace / "server" / "simulate_job"
    record = _server_record(server)
    check_complete(record)
    rounds = [_round(one["round"], one["seconds"], one["sites"]) for one in record["rounds"]]
    shared = trainer.exchange.changed(cell.experiment.federation.rounds)
    kept = {}
    for name in sites:
        local, _ = load_adapter(workspace / name / "simulate_job" / LOCAL_ADAPTER)
        kept[name] = {key: value for key, value in local.items() if key not in shared}
    # Only the sites of an encrypted federation have the final adapter in the clear.
    final = workspace / min(sites) / "simulate_job" / FINAL_ADAPTER if cell.experiment.encryption else server / FINAL
    return Outcome(rounds, Federated(load_adapter(final)[0], kept))


_host: WorkerHost | None = None


def _shared_host(folder: Path) -> str:
    """Socket of one worker host for all simulations of this process, which saves each the seconds of the imports.

    Args:
        folder: takes the log of a host that is started.
    """
    global _host
    if _host is None or not _host.runs:
        _host = WorkerHost(folder / "worker_host.log")
        atexit.register(_host.close)
    return _host.socket


ENGINES: dict[Engine, Callable[[Cell, LocalTrainer, Mapping[str, SiteData], Path], Outcome]] = {
    "flare": run_flare,
    "reference": run_reference,
}


def _simulate(folder: Path, sites: int) -> None:
    """Runs ``nvflare simulator`` to its end, with a site for each core at a time. Raises UserError if it fails."""
    nvflare = str(Path(sys.executable).parent / "nvflare")
    command = [
        sys.executable,
        kill_with_parent.__file__,
        nvflare,
        "simulator",
        "job",
        "-w",
        "workspace",
        "-t",
        str(min(sites, os.cpu_count() or 1)),
        "-m",  # FLARE refuses more than 100 sites without it
        str(sites),
    ]
    environment = {**os.environ, HOST_VARIABLE: _shared_host(folder)}
    with (
        open(folder / LOG, "wb") as log,
        subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        ) as process,
    ):
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = f"none within {LIMIT_S} s"
        if process.stdin:
            process.stdin.close()
    record = _server_record(folder / "workspace" / "server" / "simulate_job")
    if code or record["status"] != "finished":
        said = (folder / LOG).read_text(errors="replace").strip().splitlines()
        raise UserError(
            record["reason"] or f"nvflare simulator: exit code {code}; {said[-1] if said else 'nothing was said'}"
        )


def _server_record(server: Path) -> dict[str, Any]:
    """The server's ``metrics.json``; if there is none, that the run failed."""
    path = server / FILE_NAME
    return cast(dict[str, Any], read_json(path)) if path.exists() else {"status": "failed", "reason": None}


def check_complete(record: Mapping[str, Any]) -> None:
    """Raises UserError if a round or a stage of statistics in a server's ``metrics.json`` lacks a site."""
    exchanges = [(f"round {one['round'] + 1}", one["left_out"]) for one in record["rounds"]]
    exchanges += [
        (f"stage '{one['stage']}' of statistics at the {one['when']}", one["left_out"]) for one in record["statistics"]
    ]
    for what, left_out in exchanges:
        if left_out:
            missing = ", ".join(f"{name} ({why['sentence']})" for name, why in left_out.items())
            raise UserError(f"{what} lacks {missing}")


class _Recorder:
    """Records the rounds as the server of a federation does."""

    def __init__(self, trainer: LocalTrainer, sites: Mapping[str, SiteData]):
        self.rounds: list[Round] = []
        self._trainer = trainer
        self._sites = sites
        self._reports: dict[str, dict[str, Any]] = {}

    def starts(self, round_number: int, site: str, tensors: Tensors) -> None:
        self._since = time.monotonic()
        split = self._sites[site].val
        self._val = self._trainer.evaluate(tensors, split) if len(split) else None

    def trained(self, round_number: int, site: str, result: LocalRound) -> None:
        experiment = self._trainer.experiment
        exchange = self._trainer.exchange.at_rank(experiment.federation.lora_ranks.get(site))
        nbytes = round_bytes(exchange, experiment.payload, round_number, since=max(0, round_number - 1))
        self._reports[site] = {
            "num_samples": result.num_samples,
            "train_loss": result.loss,
            "seconds": time.monotonic() - self._since,
            "val": self._val,
            "bytes_in": nbytes.down,
            "bytes_out": nbytes.up,
        }
        if len(self._reports) == len(self._sites):
            seconds = sum(report["seconds"] for report in self._reports.values())
            self.rounds.append(_round(round_number, seconds, self._reports))
            self._reports = {}


def _round(number: int, seconds: float, reports: Mapping[str, Mapping[str, Any]]) -> Round:
    sites = {
        name: SiteRound(
            num_samples=report["num_samples"],
            train_loss=report["train_loss"],
            seconds=report["seconds"],
            val=scalars(report["val"]) if report["val"] else None,
        )
        for name, report in reports.items()
    }
    return Round(
        round=number,
        seconds=seconds,
        bytes_in=sum(report["bytes_in"] for report in reports.values()),
        bytes_out=sum(report["bytes_out"] for report in reports.values()),
        sites=sites,
        val=mean_scalars([site.val for site in sites.values() if site.val]),
    )


def scalars(metrics: Mapping[str, Any]) -> Scalars:
    """The `metrics` that are single numbers."""
    return Scalars(**{name: metrics[name] for name in Scalars.model_fields if name in metrics})


def mean_scalars(sites: Sequence[Scalars]) -> Scalars | None:
    """The unweighted mean over sites of each metric, over those sites that have it; None without sites."""
    if not sites:
        return None
    means: dict[str, Any] = {}
    for name in Scalars.model_fields.keys() - {"count"}:
        values = [value for site in sites if (value := metric_of(site, name)) is not None]
        if values:
            means[name] = float(np.mean(values))
    return Scalars(**means)
