"""Limits of sites in FLARE's simulator, the time that they count, and who else a job is deployed to."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey, ProcessType

from helpers import changed, simulate, simulated
from pt_peft import reasons
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.job_folder import write_job, write_workspace
from pt_peft_flare.run_context import check_job, cloned_from, continued_dir, is_simulation, read_site
from pt_peft_flare.work_time import FILE_NAME, WorkTime


def test_a_simulation_whose_sites_have_a_file_keeps_the_defaults(tiny, tiny_weights, shared_host, tmp_path):
    """The same job as in all other simulations, whose sites have no limits."""
    one = changed(tiny, federation={"rounds": 1})
    write_job(one, tmp_path / "job")
    write_workspace(Site(backbone=str(tiny_weights)), tmp_path / "workspace")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert (
        "limits refuse this (field 'min_train_images'): it asks for a 40 training; allowed: 50" in run.metrics["reason"]
    )
    write_job(changed(one, data={"images_per_site": {"train": 50, "val": 16, "test": 9}}), tmp_path / "enough")
    write_workspace(Site(backbone=str(tiny_weights)), tmp_path / "other")
    run = simulate(tmp_path / "enough", tmp_path / "other", "-n", "2", "-t", "1", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0
    assert run.metrics["status"] == "finished"
    assert [line["report"]["num_samples"] for line in run.ledger("site-1") if line["task"] == "train"] == [50]
    assert all(line["report"].get("test") is None for line in run.ledger("site-1"))
    worked = json.loads((tmp_path / "other" / "site-1" / FILE_NAME).read_text())["seconds"]
    assert worked["simulate_job"] > 0


JOB, EARLIER = "0c40f2d4-0000-4000-8000-000000000000", "0c40f2d4-0000-4000-8000-000000000001"


@pytest.fixture
def context(tmp_path, tiny):
    """A context of FLARE's with a job of the meta and the process that are given."""

    def make(process: str, job: str = JOB, in_simulator: bool = False, **meta: Any) -> Any:
        for folder in (job, EARLIER):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / job / "experiment.json").write_text(tiny.to_json())
        workspace = SimpleNamespace(
            get_site_config_dir=lambda: str(tmp_path),
            get_app_config_dir=lambda job: str(tmp_path / job),
            get_run_dir=lambda job: str(tmp_path / job),
        )
        engine = simulated(workspace) if in_simulator else SimpleNamespace(get_workspace=lambda: workspace)
        properties = {FLContextKey.JOB_META: meta}
        return SimpleNamespace(
            get_engine=lambda: engine, get_job_id=lambda: job,
            get_process_type=lambda: process, get_identity_name=lambda: "site-1",
            get_prop=lambda name, default=None: properties.get(name, default),
        )  # fmt: skip

    return make


def test_whose_limits_hold(context, tmp_path):
    site, server = ProcessType.CLIENT_JOB, ProcessType.SERVER_JOB
    assert read_site(context(site)).limits == Limits()
    assert read_site(context(site, in_simulator=True)).limits == Limits.open()
    assert read_site(context(server)).limits == Limits().of_memory()
    (tmp_path / "site.json").write_text("{}")
    assert read_site(context(site, in_simulator=True)).limits == Limits()
    (tmp_path / "site.json").write_text('{"limits": null}')
    assert read_site(context(site)).limits == Limits.open()


def test_a_job_with_the_name_of_a_simulation_opens_nothing(context):
    for process in (ProcessType.CLIENT_JOB, ProcessType.SERVER_JOB):
        assert not is_simulation(context(process, "simulate_job"))
        assert is_simulation(context(process, in_simulator=True))
    assert read_site(context(ProcessType.CLIENT_JOB, "simulate_job")).limits == Limits()


@pytest.mark.parametrize("earlier", ["a/b", "..", "startup", 5, "", ["a"], EARLIER.upper()])
def test_a_job_that_was_cloned_from_no_job_gets_nothing(earlier, context):
    fl_ctx = context(ProcessType.CLIENT_JOB, cloned_from=earlier)
    for ask in (cloned_from, continued_dir):
        with pytest.raises(UserError, match="the id of a job would be right") as error:
            ask(fl_ctx)
        assert error.value.reason == reasons.NotAClone()


def test_a_clone_continues_a_job_with_its_own_experiment_alone(context, tmp_path, tiny):
    assert continued_dir(context(ProcessType.CLIENT_JOB)) is None
    fl_ctx = context(ProcessType.CLIENT_JOB, cloned_from=EARLIER)
    assert cloned_from(fl_ctx) == EARLIER
    assert continued_dir(fl_ctx) is None  # the site was not in it
    (tmp_path / EARLIER / "experiment.json").write_text(tiny.to_json())
    assert continued_dir(fl_ctx) == tmp_path / EARLIER
    (tmp_path / EARLIER / "experiment.json").write_text(changed(tiny, seed=tiny.seed + 1).to_json())
    with pytest.raises(UserError, match="which it was cloned from") as error:
        continued_dir(fl_ctx)
    assert error.value.reason == reasons.NotAClone()


CLIENTS = [{"name": "hospital-1"}, {"name": "hospital-2"}]


@pytest.mark.parametrize(
    ("meta", "asked"),
    [
        ({"job_clients": CLIENTS, "deploy_map": {"app": ["@ALL"]}}, None),
        ({"job_clients": CLIENTS[:1], "deploy_map": {"app": ["@ALL"]}}, "a job that is deployed to 1 site(s)"),
        ({"deploy_map": {"app": ["@ALL"]}}, "a job that is deployed to 0 site(s)"),
        ({"job_clients": CLIENTS, "deploy_map": {"app": ["server"], "other": ["hospital-1"]}}, "a job of 2 apps"),
        ({"job_clients": CLIENTS}, "a job of 0 apps"),
    ],
)
def test_whom_else_a_job_is_deployed_to(context, meta, asked, tiny):
    fl_ctx = context(ProcessType.CLIENT_JOB, **meta)
    if asked is None:
        assert check_job(Site(), fl_ctx) == tiny
        return
    with pytest.raises(OutsideLimits) as error:
        check_job(Site(), fl_ctx)
    assert (error.value.field, error.value.asked) == ("min_sites", asked)
    check_job(Site(limits=Limits(min_sites=None)), fl_ctx)


def test_work_is_counted_over_restarts_and_by_job(tmp_path):
    with WorkTime(tmp_path, "a").counted():
        pass
    assert WorkTime(tmp_path, "a").seconds() > 0
    (tmp_path / FILE_NAME).write_text('{"seconds": {"a": 100.0}}')
    with pytest.raises(RuntimeError), WorkTime(tmp_path, "a").counted():  # a task that fails has taken its time
        raise RuntimeError
    assert WorkTime(tmp_path, "a").seconds() > 100
    assert WorkTime(tmp_path, "b").seconds() == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), WorkTime(tmp_path / "file", "a").counted():
        pass
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        WorkTime(tmp_path, "a").seconds()
