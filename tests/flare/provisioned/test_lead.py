"""What the lead can do to others, and what each of them is told of its jobs."""

import json
import subprocess
import sys
import time

import pytest
from lead import Run, edit, wait
from nvflare.fuel.flare_api.api_spec import AuthorizationError

from benchmark.federation.provisioned import ADMIN, LEAD
from helpers import changed
from pt_peft_flare.ledger import FILE_NAME
from pt_peft_flare.parent.refusals import refusals

pytestmark = pytest.mark.slow


def answer(session, command):
    """What the server says to a command of FLARE's console."""
    return str(session.api.do_command(command))


def test_the_lead_operates_nothing(lead):
    session = lead.session
    for refused in (
        lambda: session.disable_client("hospital-1"),
        lambda: session.shutdown("server"),
        lambda: session.restart("server"),
    ):
        with pytest.raises(AuthorizationError):
            refused()
    assert "not authorized for 'remove_client'" in answer(session, "remove_client hospital-1")
    for target in ("shutdown client hospital-1", "restart client hospital-1", "sys_info client hospital-1"):
        assert "not authorized" in answer(session, target)
    for hidden in ("cells", "process_info hospital-1", "stress", "show_config_vars hospital-1"):
        assert "is for a project_admin, not for a lead" in answer(session, hidden)
    assert {client.name for client in session.get_system_info().client_info} == {*lead.federation.sites}
    admin = lead.federation.session(ADMIN)
    try:
        assert "hospital-1" in answer(admin, "cells")
    finally:
        admin.close()


def test_a_deleted_job_leaves_the_sites_ledgers(lead, quick):
    run = lead.submit(changed(quick, name="deleted", federation={"rounds": 1}))
    assert run.finish()["status"] == "finished"
    ledgers = [lead.federation.kit(name) / run.job / FILE_NAME for name in lead.federation.sites]
    before = [path.read_text() for path in ledgers]
    lead.session.delete_job(run.job)
    assert [path.read_text() for path in ledgers] == before


def test_a_job_for_one_site_is_shown_as_that(lead, quick):
    alone = {"rounds": 3, "min_sites": 1, "round_timeout_s": 200, "site_timeout_s": 190}
    folder = lead.write(changed(quick, name="alone", federation=alone))
    edit(folder / "meta.json", deploy_map={"app": ["server", "hospital-1"]}, min_clients=1)
    run = Run(lead.session.submit_job(str(folder)), lead)
    kit = lead.federation.kit("hospital-1")
    ledger = kit / run.job / FILE_NAME
    wait(lambda: ledger.exists() and ledger.read_text(), 120, "the ledger's first line")
    shown = subprocess.run(
        [sys.executable, "-m", "pt_peft_flare", "show-job", run.job, "--kit", str(kit), "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 1
    run.finish()
    first = json.loads(ledger.read_text().splitlines()[0])
    assert first["task"] == "open"
    same = ("experiment", "digest", "submitter", "deployment", "rounds", "method", "privacy")
    assert [json.loads(shown.stdout)[field] for field in same] == [first["asks"][field] for field in same]
    assert any("deployed to 1 site(s)" in one for one in json.loads(shown.stdout)["refused"])
    assert any("deployed to 1 site(s)" in one for one in first["asks"]["refused"])
    assert first["asks"]["deployment"] == {"everyone": False, "sites": ["hospital-1"], "other_apps": {}}
    assert first["asks"]["submitter"] == {"name": LEAD, "org": "consortium", "role": "lead", "signed": True}
    assert not any((lead.federation.kit(name) / run.job).exists() for name in ("hospital-2", "hospital-3"))


@pytest.fixture
def strict(lead):
    """hospital-3 lets no job have its learner built."""
    path = lead.federation.kit("hospital-3") / "local" / "resources.json"
    path.write_text(path.with_name("resources.json.default").read_text())
    edit(path, class_allow_list=["pt_peft_flare.filters.EgressFilter"])
    restart(lead, "hospital-3")
    yield
    path.unlink()
    restart(lead, "hospital-3")


def restart(lead, name):
    lead.federation.kill(name)
    lead.federation.start(name)
    lead.federation.wait_for(lead.session, name, since=time.time())


def test_a_class_that_one_site_refuses_costs_that_site_alone(lead, quick, strict):
    run = lead.submit(changed(quick, name="strict"))
    record = run.finish()
    reason = "config_fed_client.json, executors[0].executor: class 'pt_peft_flare.learner.PeftLearner' is not in"
    assert record["status"] == "finished"
    assert record["refused"].keys() == {"hospital-3"}
    assert reason in record["refused"]["hospital-3"]
    assert reason in refusals(lead.session.get_job_meta(run.job)["job_deploy_detail"])["hospital-3"]
    assert all(one["sites"].keys() == {"hospital-1", "hospital-2"} for one in record["rounds"])


def test_a_failed_jobs_metadata_has_the_reason(lead, quick):
    folder = lead.write(changed(quick, name="quorum"))
    edit(folder / "meta.json", deploy_map={"app": ["server", "hospital-1"]}, min_clients=1)
    run = Run(lead.session.submit_job(str(folder)), lead)
    assert run.finish()["status"] == "failed"
    reason = "field 'federation.min_sites' is 2, but the job has only 1 site(s): hospital-1."
    assert reason in lead.session.get_job_meta(run.job)["reason"]
