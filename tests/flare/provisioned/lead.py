"""A provisioned federation's lead, and the jobs that were submitted."""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from link import Link

from benchmark.federation.provisioned import Federation
from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.job_folder import write_job


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(condition: Callable[[], Any], seconds: float, what: str, look_s: float = 0.2) -> Any:
    """Waits until `condition` gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(look_s)
    return value


def edit(path: Path, **fields: Any) -> None:
    """Replaces fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@dataclass
class Run:
    """A submitted job."""

    job: str
    lead: "Lead"

    @property
    def folder(self) -> Path:
        return self.lead.federation.kit("server") / self.job

    def record(self) -> dict:
        """``metrics.json`` as it stands at the server, while the job runs."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else {"rounds": []}

    def wait_for_round(self, finished: int) -> None:
        wait(lambda: len(self.record()["rounds"]) >= finished, 240, f"{finished} rounds")

    def wait_for_training(self, site: str) -> psutil.Process:
        """Until a worker of the site is training, and which process that is."""

        def training() -> psutil.Process | None:
            log = self.lead.federation.kit(site) / self.job / "worker.log"
            hosts = [p for p in self.lead.federation.processes(site) if "pt_peft.worker.host" in " ".join(_cmdline(p))]
            forked = [p for p in hosts if "pt_peft.worker.host" in " ".join(_cmdline(p.parent()))]
            return forked[0] if log.exists() and forked else None

        return wait(training, 120, f"a worker of {site}")

    def processes(self, name: str) -> list[psutil.Process]:
        """FLARE's processes for this job at the server or a site."""
        return [process for process in self.lead.federation.processes(name) if self.job in _cmdline(process)]

    def ended(self) -> str | None:
        """FLARE's word for how the job has ended; None if it has not."""
        return _ended(self.lead.session.get_job_status(self.job))

    def finish(self, seconds: float = 400) -> dict:
        """The record as the lead downloads it; empty if there is none."""
        self.state = wait(self.ended, seconds, "the end of the job")
        self.results = Path(self.lead.session.download_job_result(self.job, str(self.lead.downloads))) / "workspace"
        path = self.results / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else {}


def _cmdline(process: psutil.Process | None) -> list[str]:
    try:
        return process.cmdline() if process else []
    except psutil.NoSuchProcess:
        return []


def _ended(status: str | None) -> str | None:
    return status if status and (status.startswith("FINISHED") or "FAILED" in status) else None


class Lead:
    """Submits jobs to the federation."""

    def __init__(self, federation: Federation, links: dict[str, Link], folder: Path):
        self.federation = federation
        self.links = links
        self.folder = folder
        self.downloads = folder / "downloads"
        self.session = federation.session()

    def submit(self, experiment: Experiment) -> Run:
        return self.submit_folder(self.write(experiment))

    def submit_folder(self, folder: Path) -> Run:
        return Run(self.session.submit_job(str(folder)), self)

    def write(self, experiment: Experiment) -> Path:
        """The folder of a job that has not been submitted yet."""
        folder = self.folder / "jobs" / experiment.name
        write_job(experiment, folder, installed=True)
        return folder

    def clone(self, run: Run) -> Run:
        return Run(self.session.clone_job(run.job), self)

    def connect(self) -> None:
        """Anew, after the server was away."""
        self.session = self.federation.session()
