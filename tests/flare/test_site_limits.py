"""Limits of sites in FLARE's simulator, the time that they count, and who else a job is deployed to."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey, ProcessType

from helpers import changed, simulate
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.job_folder import write_job, write_workspace
from pt_peft_flare.run_context import check_job, read_site
from pt_peft_flare.work_time import FILE_NAME, WorkTime


def test_a_simulation_whose_sites_have_a_file_keeps_the_defaults(tiny, tiny_weights, shared_host, tmp_path):
    """The same job as in all other simulations, whose sites have no limits."""
    one = changed(tiny, federation={"rounds": 1})
    write_job(one, tmp_path / "job")
    write_workspace(Site(backbone=str(tiny_weights)), tmp_path / "workspace")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert "'min_train_images' of its limits: it asks for a round on 40 training image(s)" in run.metrics["reason"]
    write_job(changed(one, data={"images_per_site": {"train": 50, "val": 16, "test": 9}}), tmp_path / "enough")
    write_workspace(Site(backbone=str(tiny_weights)), tmp_path / "other")
    run = simulate(tmp_path / "enough", tmp_path / "other", "-n", "2", "-t", "1", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0
    assert run.metrics["status"] == "finished"
    assert [line["report"]["num_samples"] for line in run.ledger("site-1") if line["task"] == "train"] == [50]
    assert all(line["report"].get("test") is None for line in run.ledger("site-1"))
    worked = json.loads((tmp_path / "other" / "site-1" / FILE_NAME).read_text())["seconds"]
    assert worked["simulate_job"] > 0


@pytest.fixture
def context(tmp_path, tiny):
    """A context of FLARE's with a job of the meta and the process that are given."""

    def make(process: str, job: str = "3f6d", **meta: Any) -> Any:
        (tmp_path / "experiment.json").write_text(tiny.to_json())
        workspace = SimpleNamespace(
            get_site_config_dir=lambda: str(tmp_path), get_app_config_dir=lambda job: str(tmp_path)
        )
        properties = {FLContextKey.JOB_META: meta}
        return SimpleNamespace(
            get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace), get_job_id=lambda: job,
            get_process_type=lambda: process, get_prop=lambda name, default=None: properties.get(name, default),
        )  # fmt: skip

    return make


def test_whose_limits_hold(context, tmp_path):
    site, server = ProcessType.CLIENT_JOB, ProcessType.SERVER_JOB
    assert read_site(context(site)).limits == Limits()
    assert read_site(context(site, "simulate_job")).limits == Limits.open()
    assert read_site(context(server)).limits == Limits().of_memory()
    (tmp_path / "site.json").write_text("{}")
    assert read_site(context(site, "simulate_job")).limits == Limits()
    (tmp_path / "site.json").write_text('{"limits": null}')
    assert read_site(context(site)).limits == Limits.open()


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
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        WorkTime(tmp_path, "a").seconds()
