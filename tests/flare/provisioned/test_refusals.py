"""A job that is refused, and one that failed, say why where the lead looks."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.fuel.utils.config_service import ConfigService

from pt_peft.presets import demo
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.kits import SERVER_CLASSES, SITE_CLASSES
from pt_peft_flare.parent.allowed_components import AllowedComponents
from pt_peft_flare.parent.job_manager import JobManager
from pt_peft_flare.parent.refusals import Refusals, read_refusals, refusals

ALLOWED = {"config_fed_server.json": SERVER_CLASSES, "config_fed_client.json": SITE_CLASSES}
FOREIGN = {"id": "one", "path": "subprocess.Popen", "args": {}}


@pytest.fixture
def app(tmp_path):
    write_job(demo("lora")[0], tmp_path / "job", installed=True)
    return tmp_path / "job" / "app"


def validate(app, name, monkeypatch):
    resources = {"class_allow_list": [*ALLOWED[name]], "class_list_enforcement_mode": "enforce"}
    monkeypatch.setattr(ConfigService, "get_section", lambda section: resources)
    return AllowedComponents(name).validate(str(app))


@pytest.mark.parametrize("name", ALLOWED)
def test_our_jobs_pass(name, app, monkeypatch):
    assert validate(app, name, monkeypatch) == ("", {})


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("config_fed_client.json", {"components": [FOREIGN]}, "components[0]"),
        ("config_fed_client.json", {"components": [{"id": "one", "class_path": "subprocess.Popen"}]}, "components[0]"),
        ("config_fed_client.json", {"components": [{"name": "subprocess.Popen", "args": {}}]}, "components[0]"),
        ("config_fed_client.json", {"executors": [{"tasks": ["train"], "executor": FOREIGN}]}, "executors[0].executor"),
        (
            "config_fed_server.json",
            {"workflows": [{"path": SERVER_CLASSES[0], "args": {"x": FOREIGN}}]},
            "workflows[0].args.x",
        ),
    ],
)
def test_another_class_is_named_with_its_place(name, change, place, app, monkeypatch):
    path = app / "config" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    reason = f"{name}, {place}: class 'subprocess.Popen' is not in class_allow_list of resources.json here"
    assert validate(app, name, monkeypatch) == (reason, {})


def test_a_job_with_code_is_left_to_flare(app, monkeypatch):
    """Which refuses it, or lets it build anything."""
    (app / "custom").mkdir()
    path = app / "config" / "config_fed_client.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"components": [FOREIGN]}))
    assert validate(app, "config_fed_client.json", monkeypatch) == ("", {})


def test_sites_that_refuse_are_named_to_the_jobs_process(tmp_path):
    (tmp_path / "job").mkdir()
    detail = [
        "server: OK",
        "a: OK",
        "b: NVFLARE_ERROR: BYOC not\npermitted: really",
        "num_ok_sites 1 < required_min_sites 2",
    ]
    engine = SimpleNamespace(get_workspace=lambda: SimpleNamespace(get_run_dir=lambda job: tmp_path / job))
    props = {FLContextKey.JOB_DEPLOY_DETAIL: detail, FLContextKey.CURRENT_JOB_ID: "job"}
    fl_ctx: Any = SimpleNamespace(get_engine=lambda: engine, get_prop=props.get)
    assert read_refusals(tmp_path / "job") == {}
    Refusals().handle_event(EventType.JOB_DEPLOYED, fl_ctx)
    assert read_refusals(tmp_path / "job") == {"b": "BYOC not permitted: really"} == refusals(detail)


LOG = """\
2026-01-02 03:04:05,678 - CoreCell - INFO - up
2026-01-02 03:04:06,789 - ServerAppRunner - ERROR - FL server execution exception: no module named mlflow
2026-01-02 03:04:07,789 - Later - ERROR - more
"""


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"metrics.json": '{"status": "failed", "reason": "too few sites"}', "error_log.txt": LOG}, "too few sites"),
        ({"metrics.json": '{"status": "finished", "reason": null}', "error_log.txt": LOG}, None),
        ({"error_log.txt": LOG}, "FL server execution exception: no module named mlflow"),
        ({"metrics.json": "{"}, None),
        ({}, None),
    ],
)
def test_a_failed_jobs_reason_is_kept_with_it(files, reason, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    kept, saved = {}, []
    monkeypatch.setattr(JobManager, "update_meta", lambda self, jid, meta, fl_ctx: kept.update(meta))
    monkeypatch.setattr(SimpleJobDefManager, "save_workspace", lambda self, jid, data, fl_ctx: saved.append(data))
    JobManager().save_workspace("job", [str(tmp_path)], FLContext())
    assert kept == ({"reason": reason} if reason else {})
    assert saved == [[str(tmp_path)]]
