"""One provisioned federation of three sites, in processes of its own, for all tests here."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from link import Link

from benchmark.federation.provisioned import Federation
from helpers import changed
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.presets import demo
from pt_peft_flare.job_folder import write_job

SITES = ("hospital-1", "hospital-2", "hospital-3")
TAMPERED = Path(__file__).parent / "tampered"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(condition: Callable[[], object], seconds: float, what: str):
    """What `condition` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return value


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
            return log.exists() and forked and forked[0]

        return wait(training, 120, f"a worker of {site}")

    def processes(self, name: str) -> list[psutil.Process]:
        """FLARE's processes for this job at the server or a site."""
        return [process for process in self.lead.federation.processes(name) if self.job in _cmdline(process)]

    def finish(self, seconds: float = 400) -> dict:
        """The record as the lead downloads it; empty if there is none."""
        self.state = wait(lambda: _ended(self.lead.session.get_job_status(self.job)), seconds, "the end of the job")
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
        return Run(self.session.submit_job(str(self.write(experiment))), self)

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


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    """Seconds of training a round, so that a fault falls into it."""
    return changed(
        demo("lora_vpt")[0],
        data={"images_per_site": {"train": 96, "val": 16, "test": 16}},
        federation={"rounds": 3, "min_sites": 2, "round_timeout_s": 120, "site_timeout_s": 100},
    )


@pytest.fixture(scope="session")
def quick(experiment) -> Experiment:
    """As short as a round can be."""
    return changed(experiment, data={"images_per_site": {"train": 16, "val": 16, "test": 16}})


@pytest.fixture(scope="session")
def lead(tmp_path_factory) -> Iterator[Lead]:
    """The lead of three hospitals. Each has a line that can be cut; of hospital-3 the software is `tampered` with, which
    changes nothing until its ``faults.json`` says so."""
    folder = tmp_path_factory.mktemp("federation")
    port = free_port()
    links = {name: Link(port) for name in SITES}
    sites = {name: Site(threads=1, cache=str(folder / "cache")) for name in SITES}
    federation = Federation(folder, sites, port, {name: link.port for name, link in links.items()})
    path = os.pathsep.join(filter(None, [str(TAMPERED), os.environ.get("PYTHONPATH")]))
    federation.environment["hospital-3"] = {"PYTHONPATH": path}
    try:
        federation.start()
        lead = Lead(federation, links, folder)
        federation.wait_for(lead.session)
        yield lead
        lead.session.close()
    finally:
        federation.close()
