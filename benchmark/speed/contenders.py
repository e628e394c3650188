"""The contenders: the command that runs each, and its environment."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmark.speed.measure import ROOT, executable, python_path
from benchmark.speed.work import Work
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft_flare.job_folder import write_job, write_workspace

HOOKS = Path(__file__).parent / "hooks"


@dataclass(frozen=True)
class Contender:
    """A way to do the work."""

    command: list[str]
    environment: dict[str, str]
    """Variables beside those of this process."""
    transfers: int
    """How often the payload has to travel in a run."""
    prepare: Callable[[Path], None] = lambda folder: None
    """Called before each run with its folder."""


def plain(work: Work, data: Path) -> Contender:
    """Makes the contender that is a bare PyTorch loop in one process."""
    return Contender([sys.executable, "-m", "benchmark.speed.plain", str(data)], python_path(), 0)


def flare_stock(work: Work, data: Path) -> Contender:
    """Makes the contender that is FLARE's simulator with FLARE's own recipe, one thread for each site."""

    def prepare(folder: Path) -> None:
        command = [sys.executable, "-m", "benchmark.speed.flare_stock.job", str(data), str(folder)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)

    return Contender(
        [*simulator("stock", work.sites, work.sites), "-n", str(work.sites)], python_path(), _both_ways(work), prepare
    )


def flower(work: Work, data: Path, interpreter: str) -> Contender:
    """Makes the contender that is Flower's simulation, run by a Python that has ``flwr[simulation]``."""
    command = [interpreter, "-m", "benchmark.speed.flower", str(data)]
    environment = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_DISABLE_METRICS": "1"}
    return Contender(command, {**python_path(), **environment}, _both_ways(work))


def flower_version(interpreter: str) -> str:
    """Returns the version of Flower that a Python has. Raises UserError if it has no ``flwr[simulation]``."""
    code = "import flwr, flwr.simulation, ray; print(flwr.__version__)"
    try:
        said = subprocess.run(
            [interpreter, "-c", code], capture_output=True, text=True, env={**os.environ, **python_path()}
        )
    except OSError as error:
        raise UserError(f"--flower: {interpreter} cannot be run ({error.strerror}).") from None
    if said.returncode:
        reason = (said.stderr.strip() or "no reason given").splitlines()[-1]
        raise UserError(f"--flower: {interpreter} has no flwr[simulation] ({reason}); see benchmark/README.md.")
    return said.stdout.strip()


def ours(work: Work, data: Path, site: Site, threads: int | None = None, **fields: object) -> Contender:
    """Makes the contender that is FLARE's simulator with our job.

    Args:
        work: what to do.
        data: the work's folder.
        site: settings of all simulated sites.
        threads: sites that run at the same time; None for all.
        fields: sections of the experiment that replace its own.
    """

    def prepare(folder: Path) -> None:
        write_job(work.experiment(data, **fields), folder / "job")
        write_workspace(site, folder / "workspace")

    # The final aggregate travels to every site once more, which evaluates it.
    return Contender(
        simulator("job", threads or work.sites, work.sites), python_path(HOOKS), _both_ways(work) + work.sites, prepare
    )


def simulator(job: str, threads: int, sites: int) -> list[str]:
    """Returns FLARE's command, which runs `threads` of the `sites` at the same time."""
    command = [executable("nvflare"), "simulator", job, "-w", "workspace", "-t", str(threads)]
    return [*command, "-m", str(sites)]  # FLARE refuses more than 100 without it


def fresh(folder: Path) -> Path:
    """Empties or makes `folder`. Returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _both_ways(work: Work) -> int:
    return 2 * work.sites * work.rounds
