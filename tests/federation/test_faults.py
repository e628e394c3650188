"""Faults in a real federation: provisioned, mTLS, a process for every part."""

import os
import signal

import numpy as np
import pytest

from benchmark.reference import federate, load_sites, make_trainer
from helpers import changed
from pt_peft.adapter_file import load_adapter
from pt_peft.site import Site

pytestmark = pytest.mark.slow


def test_a_killed_worker_costs_its_site_the_round(lead, experiment):
    run = lead.submit(changed(experiment, name="worker"))
    run.wait_for_round(1)
    os.kill(run.wait_for_training("hospital-2").pid, signal.SIGKILL)
    record = run.finish()
    assert record["status"] == "finished"
    missed = [one["round"] for one in record["rounds"] if "hospital-2" in one["left_out"]]
    assert len(missed) == 1 and "hospital-2" in record["rounds"][-1]["sites"]
    assert not record["final"]["left_out"]


def test_a_killed_job_process_is_back_for_the_same_round(lead, experiment):
    run = lead.submit(changed(experiment, name="process"))
    run.wait_for_training("hospital-2")
    job = next(p for p in lead.federation.processes("hospital-2") if "worker_process" in " ".join(p.cmdline()))
    os.kill(job.pid, signal.SIGKILL)
    record = run.finish()
    assert record["status"] == "finished"
    assert all(len(one["sites"]) == 3 for one in record["rounds"])
    assert "started again" in (lead.federation.kit("hospital-2") / "log.txt").read_text()


def test_a_killed_site_joins_again(lead, experiment):
    run = lead.submit(changed(experiment, name="site", federation={"rounds": 5, "round_timeout_s": 60, "site_timeout_s": 50}))
    run.wait_for_training("hospital-3")
    lead.federation.kill("hospital-3")
    run.wait_for_round(1)
    assert run.record()["rounds"][0]["left_out"].keys() == {"hospital-3"}
    lead.federation.start("hospital-3")
    record = run.finish()
    assert record["status"] == "finished"
    assert "hospital-3" in record["rounds"][-1]["sites"] and not record["final"]["left_out"]


def test_a_killed_server_resumes(lead, experiment):
    experiment = changed(experiment, name="server", federation={"rounds": 4})
    run = lead.submit(experiment)
    run.wait_for_round(2)
    lead.federation.kill("server")
    lead.federation.start("server")
    lead.connect()
    lead.federation.wait_for(lead.session)
    assert lead.session.get_job_status(run.job) == "FINISHED:ABNORMAL"
    again = lead.clone(run)
    record = again.finish()
    assert record["status"] == "finished" and record["continues"] == run.job
    assert [one["round"] for one in record["rounds"]] == [0, 1, 2, 3]
    sites = load_sites(experiment, Site(), list(lead.federation.sites))
    oracle = federate(make_trainer(experiment, Site()), sites).tensors
    final, _ = load_adapter(again.results / "adapter.safetensors")
    assert final.keys() == oracle.keys()
    assert max(np.abs(final[key] - oracle[key]).max() for key in oracle) <= 1e-6
    assert not list((lead.federation.kit("server") / "checkpoints").glob(f"{again.job}*"))
