"""Sites whose FLARE process hangs, ends or is to end while a job comes."""

import subprocess
import time

import psutil
import pytest
from lead import wait

from helpers import changed

pytestmark = pytest.mark.slow


def parent(lead, name) -> psutil.Process:
    """The FLARE process of a site, which outlives jobs."""
    return next(
        one for one in lead.federation.processes(name) if "nvflare.private.fed.app.client.client_train" in one.cmdline()
    )


def joined(run, name) -> bool:
    return any(name in one["sites"] for one in run.record()["rounds"])


def test_a_parent_that_hangs_for_half_a_minute_joins_late(lead, experiment):
    stopped = parent(lead, "hospital-2")
    stopped.suspend()
    run = lead.submit(changed(experiment, name="hangs", federation={"rounds": 12}))
    time.sleep(30)
    stopped.resume()
    wait(lambda: joined(run, "hospital-2"), 200, "hospital-2 in a round")
    record = run.finish()
    assert record["status"] == "finished"
    assert "hospital-2" in record["rounds"][-1]["sites"]
    log = (lead.federation.kit("server") / "log.txt").read_text()
    assert f"hospital-2 cannot join the running job {run.job} yet: it does not answer" in log
    assert f"hospital-2 has joined the running job {run.job}" in log


def test_a_job_process_ends_with_its_parent_while_it_starts(lead, quick):
    run = lead.submit(changed(quick, name="orphan", federation={"rounds": 6}))
    (process,) = wait(lambda: run.processes("hospital-2"), 60, "the job's process")
    parent(lead, "hospital-2").kill()
    wait(lambda: not alive(process), 5, "the end of the job's process")
    assert run.finish()["status"] == "finished"


def alive(process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_site_that_is_stopped_takes_no_job(lead, experiment):
    kit = lead.federation.kit("hospital-3")
    stopping = subprocess.Popen(
        ["bash", str(kit / "startup" / "stop_fl.sh")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert stopping.stdin
    stopping.stdin.write("y")
    stopping.stdin.close()
    run = lead.submit(changed(experiment, name="stops", federation={"rounds": 8}))
    try:
        assert stopping.wait(30) == 0
        wait(lambda: not lead.federation.processes("hospital-3"), 10, "the end of hospital-3")
        assert not (kit / run.job).exists()
    finally:
        lead.federation.start("hospital-3")
    record = run.finish()
    assert record["status"] == "finished"
    assert "hospital-3" in record["rounds"][-1]["sites"]
    assert len({process.pid for process in run.processes("hospital-3")}) <= 1
