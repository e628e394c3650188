"""Two ways to run a federation: FLARE's simulator, and the plain loop that ends with the same adapter."""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.oracle.reference import Federated, federate
from benchmark.sweep import kill_with_parent
from benchmark.sweep.cells import Cell
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
from pt_peft_flare.tracking import SCALARS

LOG = "simulator.log"
LIMIT_S = 6 * 3600
"""No run takes longer; the experiment's own deadlines are tighter."""


@dataclass(frozen=True)
class Outcome:
    """How a federation went."""

    rounds: list[dict]
    """Of each round: its number, ``seconds``, ``bytes_in`` and ``bytes_out`` of all sites (raw tensors), ``sites`` and their
    mean ``val``, which is of the model that the round started from."""
    final: Federated
    """What it ended with."""


def run_reference(cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], folder: Path) -> Outcome:
    """In this process. Raises UserError; also for an experiment with ``encryption``, of which the loop has no bytes to tell."""
    if cell.experiment.encryption:
        raise UserError(
            "experiment: field 'encryption' is set, but the plain loop (engine 'reference') encrypts nothing; 'flare' does."
        )
    recorder = _Recorder(trainer, sites)
    final = federate(trainer, sites, observer=recorder)
    return Outcome(recorder.rounds, final)


def run_flare(cell: Cell, trainer: LocalTrainer, sites: Mapping[str, SiteData], folder: Path) -> Outcome:
    """In FLARE's simulator.

    Args:
        folder: takes job, workspace and log.

    Raises:
        UserError: if the job did not finish, with what was said last.
    """
    write_job(cell.experiment, folder / "job")
    workspace = folder / "workspace"
    write_workspace(cell.site, workspace)
    _simulate(folder, threads=min(len(sites), os.cpu_count() or 1))
    server = workspace / "server" / "simulate_job"
    rounds = []
    for one in read_json(server / FILE_NAME)["rounds"]:
        if one["left_out"]:
            missing = ", ".join(f"{name} ({why})" for name, why in one["left_out"].items())
            raise UserError(f"round {one['round'] + 1} lacks {missing}")
        rounds.append(_round(one["round"], one["seconds"], one["sites"]))
    shared = trainer.exchange.changed(cell.experiment.federation.rounds)
    kept = {}
    for name in sites:
        local, _ = load_adapter(workspace / name / "simulate_job" / LOCAL_ADAPTER)
        kept[name] = {key: value for key, value in local.items() if key not in shared}
    # An encrypted federation ends at the sites.
    final = workspace / min(sites) / "simulate_job" / FINAL_ADAPTER if cell.experiment.encryption else server / FINAL
    return Outcome(rounds, Federated(load_adapter(final)[0], kept))


_host: WorkerHost | None = None


def _shared_host(folder: Path) -> str:
    """Socket of one host for all simulations of this process, each of which would spend seconds on the same imports.

    Args:
        folder: takes the log of one that is started.
    """
    global _host
    if _host is None or not _host.runs:
        _host = WorkerHost(folder / "worker_host.log")
        atexit.register(_host.close)
    return _host.socket


ENGINES = {"flare": run_flare, "reference": run_reference}


def _simulate(folder: Path, threads: int) -> None:
    """``nvflare simulator`` to its end. Raises UserError."""
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
        str(threads),
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
        process.stdin.close()
    metrics = folder / "workspace" / "server" / "simulate_job" / FILE_NAME
    record = read_json(metrics) if metrics.exists() else {"status": "failed", "reason": None}
    if code or record["status"] != "finished":
        said = (folder / LOG).read_text(errors="replace").strip().splitlines()
        raise UserError(
            record["reason"] or f"nvflare simulator: exit code {code}; {said[-1] if said else 'nothing was said'}"
        )


class _Recorder:
    """Notes what the server of a federation would."""

    def __init__(self, trainer: LocalTrainer, sites: Mapping[str, SiteData]):
        self.rounds: list[dict] = []
        self._trainer = trainer
        self._sites = sites
        self._reports: dict[str, dict] = {}

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


def _round(number: int, seconds: float, reports: Mapping[str, dict]) -> dict:
    sites = {
        name: {
            **{field: report[field] for field in ("num_samples", "train_loss", "seconds")},
            "val": scalars(report["val"]),
        }
        for name, report in reports.items()
    }
    return {
        "round": number,
        "seconds": seconds,
        "bytes_in": sum(report["bytes_in"] for report in reports.values()),
        "bytes_out": sum(report["bytes_out"] for report in reports.values()),
        "sites": sites,
        "val": mean_scalars([site["val"] for site in sites.values()]),
    }


def scalars(metrics: dict | None) -> dict | None:
    """Those of `metrics` that are single numbers."""
    return metrics and {name: metrics[name] for name in ("count", *SCALARS) if metrics.get(name) is not None}


def mean_scalars(sites: list[dict | None]) -> dict | None:
    """The unweighted mean over sites of each metric, of those sites that have it; None if no site has any."""
    there = [site for site in sites if site]
    if not there:
        return None
    names = [name for name in SCALARS if any(name in site for site in there)]
    return {name: float(np.mean([site[name] for site in there if name in site])) for name in names}
