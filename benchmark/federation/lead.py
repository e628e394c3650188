"""The lead of a provisioned federation, and the jobs that the lead has submitted."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from nvflare.fuel.flare_api.api_spec import NoConnection

from benchmark.federation.provisioned import Federation
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.round_file import read_rounds
from pt_peft_flare.run_record import FILE_NAME, ROUNDS


def wait(condition: Callable[[], Any], seconds: float, what: str, look_s: float = 0.2) -> Any:
    """Waits until `condition` gives something true, and returns that.

    Args:
        condition: is called time and again.
        seconds: how long it may take.
        what: is waited for.
        look_s: seconds between calls.

    Raises:
        UserError: if it takes longer.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise UserError(f"{what}: not within {seconds:g} s.")
        time.sleep(look_s)
    return value


class Run:
    """A submitted job.

    Attributes:
        job: FLARE's id.
        state: FLARE's word of how it ended, after `finish`.
        results: folder of its results, after `finish`.
    """

    def __init__(self, job: str, lead: "Lead"):
        """Takes the id of a job that `lead` has submitted."""
        self.job = job
        self.state = ""
        self.results = Path()
        self._lead = lead

    @property
    def folder(self) -> Path:
        """The job's folder at the server, while it runs."""
        return self._lead.federation.kit("server") / self.job

    def record(self) -> dict[str, Any]:
        """The rounds as they stand at the server, while the job runs; ``metrics.json``, when it has ended."""
        rounds = read_rounds(self.folder / ROUNDS)
        try:
            return json.loads((self.folder / FILE_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"rounds": rounds}

    def wait_for_round(self, finished: int, seconds: float = 240) -> None:
        """Waits until so many rounds are `finished`."""
        wait(lambda: len(self.record()["rounds"]) >= finished, seconds, f"{finished} rounds")

    def wait_for_training(self, site: str) -> psutil.Process:
        """Waits until a worker of the site is training. Returns its process."""

        def training() -> psutil.Process | None:
            log = self._lead.federation.kit(site) / self.job / "worker.log"
            hosts = [one for one in self._lead.federation.processes(site) if _is_host(one)]
            forked = [one for one in hosts if _is_host(one.parent())]
            return forked[0] if log.exists() and forked else None

        found = wait(training, 120, f"a worker of {site}")
        assert found is not None
        return found

    def processes(self, name: str) -> list[psutil.Process]:
        """FLARE's processes for this job at the server or a site."""
        return [process for process in self._lead.federation.processes(name) if self.job in _cmdline(process)]

    def ended(self) -> bool:
        """Whether the job is listed as ended; a server too busy to answer in FLARE's few seconds has not said so."""
        try:
            state = self._lead.session.get_job_status(self.job)
        except NoConnection:
            return False
        self.state = state if state and (state.startswith("FINISHED") or "FAILED" in state) else ""
        return bool(self.state)

    def finish(self, seconds: float = 400) -> dict[str, Any]:
        """Waits for the end. Returns the record as the lead downloads it; empty if there is none."""
        wait(self.ended, seconds, "the end of the job")
        downloads = str(self._lead.downloads)
        self.results = Path(self._lead.session.download_job_result(self.job, downloads)) / "workspace"
        path = self.results / FILE_NAME
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class Lead:
    """Submits jobs to a federation.

    Attributes:
        federation: which has been started.
        session: the lead's, of FLARE's own API.
        downloads: folder of results.
    """

    def __init__(self, federation: Federation, folder: Path):
        """Opens a session; `folder` takes jobs and downloads."""
        self.federation = federation
        self.downloads = folder / "downloads"
        self.session = federation.session()
        self._jobs = folder / "jobs"

    def submit(self, experiment: Experiment) -> Run:
        """Submits a job."""
        return self.submit_folder(self.write(experiment))

    def submit_folder(self, folder: Path) -> Run:
        """Submits the job in `folder`."""
        return Run(self.session.submit_job(str(folder)), self)

    def write(self, experiment: Experiment) -> Path:
        """Writes the folder of a job, and does not submit it."""
        folder = self._jobs / experiment.name
        write_job(experiment, folder, installed=True)
        return folder

    def clone(self, run: Run) -> Run:
        """Submits a job again."""
        return Run(self.session.clone_job(run.job), self)

    def connect(self) -> None:
        """Opens another session in place of the present one, after the server was away."""
        self.session.api.close()
        self.session = self.federation.session()


def _is_host(process: psutil.Process | None) -> bool:
    return process is not None and any("pt_peft.worker.host" in argument for argument in _cmdline(process))


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
