"""A simulated site's process that is killed is started again, until it was killed too often."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

from helpers import Run, changed
from pt_peft.worker.host_lookup import HOST_VARIABLE
from pt_peft_flare import simulated_restarts
from pt_peft_flare.flare_internals import SITE_RESTARTS
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.simulated_restarts import MAX_RESTARTS, restart_killed_sites

SITES = 3
KILLED = (True, None, "site-2")


class Simulator:
    """One that runs a site as often as there are `outcomes`."""

    def __init__(self, monkeypatch, outcomes, over=False):
        self.outcomes = list(outcomes)
        self.gave_up = []
        self.tries = 0
        self.over = over
        monkeypatch.setattr(SimulatorClientRunner, "do_one_task", self._run_once)
        monkeypatch.setattr(SimulatorClientRunner, "_create_connection", self._connect)
        monkeypatch.setattr(SITE_RESTARTS, "names", ())  # else it is seen that this is not FLARE's
        restart_killed_sites(self.gave_up.append, lambda: self.over)

    def _run_once(self, *args) -> Any:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _connect(self, runner, open_port, timeout) -> Any:
        self.tries += 1
        raise RuntimeError("no connection")

    def run(self, threads) -> Any:
        runner: Any = SimpleNamespace(federated_clients=[None] * SITES)
        return SimulatorClientRunner.do_one_task(runner, SimpleNamespace(client_name="site-2"), threads, None, None)


@pytest.mark.parametrize("first", [KILLED, EOFError(), ConnectionResetError(), RuntimeError("no connection")])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_started_again_after_a_kill(monkeypatch, first, threads):
    after = (False, SimpleNamespace(client_name="site-3"), None)
    simulator = Simulator(monkeypatch, [first, after])
    assert simulator.run(threads) == after
    assert not simulator.gave_up


def test_an_end_of_its_own_is_final(monkeypatch):
    end = (True, SimpleNamespace(client_name="site-2"), "site-2")
    assert Simulator(monkeypatch, [end]).run(3) == end


def test_after_the_job_nothing_is_started(monkeypatch):
    assert Simulator(monkeypatch, [KILLED], over=True).run(3) == KILLED


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_killed_too_often_it_is_given_up(monkeypatch, threads):
    """Its thread goes on with other sites if there are more of them than threads, until the job ends."""
    simulator = Simulator(monkeypatch, [KILLED] * (MAX_RESTARTS + 1))
    assert simulator.run(threads) == (threads == SITES, None, None)
    assert simulator.gave_up == ["site-2"]
    assert simulator.run(threads) == (threads == SITES, None, None)
    simulator.over = True
    assert simulator.run(threads)[0] is True


def test_a_process_that_dies_before_it_listens_is_not_waited_for(monkeypatch):
    """FLARE would try to connect for a minute."""
    simulator = Simulator(monkeypatch, [])
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--port", "9"])
    threading.Timer(0.3, process.kill).start()
    monkeypatch.setattr(simulated_restarts, "_LOOK_S", 0.1)

    def connect(runner, open_port, timeout):
        time.sleep(timeout)
        return simulator._connect(runner, open_port, timeout)

    monkeypatch.setattr(SimulatorClientRunner, "_create_connection", connect)
    restart_killed_sites(simulator.gave_up.append, lambda: False)
    started = time.monotonic()
    runner: Any = None
    with pytest.raises(RuntimeError, match="no connection"):
        SimulatorClientRunner._create_connection(runner, 9)
    assert 0.2 < time.monotonic() - started < 5
    assert simulator.tries > 1
    process.wait()


def processes_of(site: str, of: psutil.Process) -> list[psutil.Process]:
    """The simulator's processes for a site, which work in the site's folder."""
    found = []
    for process in of.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).name == site:
                found.append(process)
    return found


def simulate_and_kill(job: Path, workspace: Path, threads: int, kills: int, host) -> tuple[Run, float]:
    """Runs `job` on three sites and kills site-2's process `kills` times, from the end of the first round on.

    Returns:
        The run, and the seconds from the first kill to the end.
    """
    command = [str(Path(sys.executable).parent / "nvflare"), "simulator", str(job), "-n", "3", "-t", str(threads)]
    run = Run(workspace, -1, "")
    output = workspace.with_name("output.txt")
    with open(output, "w") as file:
        process = subprocess.Popen(
            [*command, "-w", str(workspace)],
            stdout=file,
            stderr=file,
            cwd=workspace.parent,
            env={**os.environ, HOST_VARIABLE: host.socket},
        )
        simulator = psutil.Process(process.pid)
        until = time.monotonic() + 200
        killed, first = set(), 0.0
        while process.poll() is None and time.monotonic() < until:
            if (run.server / "rounds.jsonl").exists() and len(killed) < kills:
                for one in processes_of("site-2", simulator):
                    if one.pid not in killed:
                        os.kill(one.pid, signal.SIGKILL)
                        killed.add(one.pid)
                        first = first or time.monotonic()
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
    run.exit_code, run.output = process.wait(), output.read_text()
    assert len(killed) == kills
    return run, time.monotonic() - first


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_killed_site_is_back_for_the_same_round(tiny, workspace, shared_host, tmp_path, threads):
    job = tmp_path / "job"
    write_job(changed(tiny, federation={"rounds": 4}), job)
    run, seconds = simulate_and_kill(job, workspace, threads, 1, shared_host)
    assert run.exit_code == 0, run.output
    assert "site-2: its process has died; it is started again" in run.output
    assert run.metrics["status"] == "finished"
    assert len(run.metrics["rounds"]) == 4
    assert not any(entry["left_out"] for entry in run.metrics["rounds"])
    assert len(run.metrics["final"]["sites"]) == 3
    assert seconds < 60 + 40 * (3 - threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_site_that_is_killed_too_often_costs_no_deadline(tiny, workspace, shared_host, tmp_path, threads):
    """Of an hour."""
    job = tmp_path / "job"
    write_job(changed(tiny, federation={"rounds": 12}), job)
    run, seconds = simulate_and_kill(job, workspace, threads, MAX_RESTARTS + 1, shared_host)
    assert run.exit_code == 0, run.output
    assert run.metrics["status"] == "finished"
    left_out = [entry["left_out"] for entry in run.metrics["rounds"]]
    assert left_out[-1]["site-2"]["code"] == "killed_too_often"
    assert run.metrics["final"]["sites"].keys() == {"site-1", "site-3"}
    assert seconds < 200
