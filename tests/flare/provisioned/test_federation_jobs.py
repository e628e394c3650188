"""Several jobs, jobs that a site refuses, jobs that nobody may submit, and jobs that are stopped."""

import json
from pathlib import Path

import psutil
import pytest
from lead import Run, edit, wait
from nvflare.fuel.flare_api.api_spec import InvalidJobDefinition

from helpers import changed
from pt_peft.experiment.limits import Limits
from pt_peft_flare import ledger
from pt_peft_flare.commands.status import status, table
from pt_peft_flare.parent.refusals import refusals

pytestmark = pytest.mark.slow
PATIENT = {"round_timeout_s": 400, "site_timeout_s": 300}
"""Eight processes import torch at the same time."""


@pytest.fixture
def picky(lead):
    """hospital-1 takes part in nothing but bitfit."""
    path = lead.federation.kit("hospital-1") / "local" / "site.json"
    before = path.read_text()
    path.write_text(
        json.dumps(
            {
                **json.loads(before),
                "limits": Limits(methods=("bitfit",), min_train_images=16).model_dump(exclude_defaults=True),
            }
        )
    )
    yield
    path.write_text(before)


def test_two_jobs_at_once_and_a_site_that_refuses_one(lead, quick, picky):
    both = [
        lead.submit(
            changed(quick, name=f"at_once_{method}", method={"name": method, "options": {}}, federation=PATIENT)
        )
        for method in ("bitfit", "norm")
    ]
    seen = wait(lambda: (now := status(lead.session, None)) and len(now["jobs"]) == 2 and now, 120, "both to run")
    assert all(job.job in table(seen) for job in both)
    taken, refused = (run.finish() for run in both)
    assert taken["status"] == refused["status"] == "finished"
    assert all(len(one["sites"]) == 3 for one in taken["rounds"])
    for one in refused["rounds"]:
        reason = one["left_out"]["hospital-1"]
        assert reason == {
            "code": "outside_limits",
            "field": "methods",
            "asked": ["method", "norm"],
            "sentence": "the site's limits refuse this (field 'methods'): it asks for method norm",
        }
        assert one["sites"].keys() == {"hospital-2", "hospital-3"}


def test_after_an_abort_nothing_is_left(lead, experiment):
    run = lead.submit(changed(experiment, name="abort", federation={"rounds": 50}))
    workers = [run.wait_for_training(site) for site in lead.federation.sites]
    lead.session.abort_job(run.job)
    names = ("server", *lead.federation.sites)
    wait(lambda: not any(run.processes(name) for name in names), 60, "its processes to end")
    wait(
        lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers),
        10,
        "workers to end",
    )
    wait(lambda: lead.session.get_job_status(run.job) == "FINISHED:ABORTED", 30, "the job to be listed as aborted")
    assert run.job not in status(lead.session, None)["jobs"]
    assert {client.name for client in lead.session.get_system_info().client_info} == {*lead.federation.sites}


def test_an_apps_name_is_no_path(lead, quick):
    for number, app in enumerate(["../../app", "/tmp/app", ".."]):
        folder = lead.write(changed(quick, name=f"path_{number}"))
        edit(folder / "meta.json", deploy_map={app: ["@ALL"]})
        with pytest.raises(InvalidJobDefinition):
            lead.session.submit_job(str(folder))


def test_an_experiments_name_is_no_path(lead, quick):
    folder = lead.write(changed(quick, name="name"))
    edit(folder / "app" / "config" / "experiment.json", name="../../name")
    run = Run(lead.session.submit_job(str(folder)), lead)
    record = run.finish()
    assert run.state != "FINISHED:COMPLETED"
    assert "field 'name'" in (run.results / "log.txt").read_text()
    assert not record


def test_code_that_comes_with_a_job_is_refused(lead, quick):
    folder = lead.write(changed(quick, name="code"))
    (folder / "app" / "custom").mkdir()
    (folder / "app" / "custom" / "helper.py").write_text("print('here')")
    job = lead.session.submit_job(str(folder))
    wait(lambda: lead.session.get_job_status(job) == "FINISHED:FAILED_TO_RUN", 60, "the job to be refused")
    assert lead.session.get_job_meta(job)["job_deploy_detail"] == ["server: BYOC not permitted"]
    assert not any((lead.federation.kit(name) / job).exists() for name in lead.federation.sites)


@pytest.mark.parametrize("where", ["server", "client"])
def test_other_classes_are_not_built(where, lead, quick):
    folder = lead.write(changed(quick, name=f"class_{where}"))
    command = {"path": "subprocess.Popen", "args": {"args": "touch /tmp/pt_peft_was_here", "shell": True}}
    edit(folder / "app" / "config" / f"config_fed_{where}.json", components=[{"id": "command", **command}])
    job = lead.session.submit_job(str(folder))
    wait(lambda: lead.session.get_job_status(job) == "FINISHED:FAILED_TO_RUN", 60, "the job to be refused")
    assert not Path("/tmp/pt_peft_was_here").exists()
    reason = f"config_fed_{where}.json, components[0]: class 'subprocess.Popen' is not in class_allow_list"
    refused = refusals(lead.session.get_job_meta(job)["job_deploy_detail"])
    asked = ["server"] if where == "server" else lead.federation.sites
    assert all(reason in refused[name] for name in asked)
    left = [path.name for name in lead.federation.sites for path in (lead.federation.kit(name) / job).glob("*")]
    assert left == [ledger.FILE_NAME] * (3 if where == "client" else 0)


def test_a_job_without_the_egress_filter_trains_nowhere(lead, quick):
    folder = lead.write(changed(quick, name="no_filter"))
    edit(folder / "app" / "config" / "config_fed_client.json", task_result_filters=[])
    run = Run(lead.session.submit_job(str(folder)), lead)
    record = run.finish()
    assert run.state != "FINISHED:COMPLETED"
    assert not record["rounds"]
    assert "'task_result_filters' of config_fed_client is not what a site needs for task 'train'" in record["reason"]
    assert not any(
        (lead.federation.kit(name) / run.job / "local_adapter.safetensors").exists() for name in lead.federation.sites
    )
