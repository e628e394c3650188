"""What a site does when a job comes again, is deleted, or comes while the site shuts down."""

import io
import json
import resource
import subprocess
import zipfile
from types import SimpleNamespace
from typing import Any

import pytest
from lead import wait
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.privacy_manager import PrivacyService

from benchmark.federation.provisioned import Federation
from pt_peft.experiment.site import Site
from pt_peft_flare.kits import DESCRIPTORS
from pt_peft_flare.parent.site_jobs import SHUTDOWN, SHUTS_DOWN, SiteJobs

JOB = "0c40f2d4-0000-4000-8000-000000000000"


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setattr(AppAuthzService, "app_validator", None)
    monkeypatch.setattr(PrivacyService, "is_scope_allowed", lambda scope: True)
    for folder in ("startup", "local"):
        (tmp_path / folder).mkdir()
    return Workspace(str(tmp_path), site_name="hospital-1")


def app(content: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config/experiment.json", content)
    return packed.getvalue()


def deploy(workspace, content="{}"):
    return SiteJobs().deploy(workspace, JOB, {"job_id": JOB}, "app", app(content), FLContext())


def test_what_a_job_has_left_outlives_its_next_deployment(workspace, tmp_path):
    assert not deploy(workspace, "first")
    (tmp_path / JOB / "egress.jsonl").write_text("what left\n")
    (tmp_path / JOB / "app_hospital-1" / "old").touch()
    assert not deploy(workspace, "second")
    assert (tmp_path / JOB / "egress.jsonl").read_text() == "what left\n"
    assert (tmp_path / JOB / "app_hospital-1" / "config" / "experiment.json").read_text() == "second"
    assert not (tmp_path / JOB / "app_hospital-1" / "old").exists()
    assert json.loads((tmp_path / JOB / "meta.json").read_text()) == {"job_id": JOB}
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOB, "local", "startup"]


def test_a_deployment_that_fails_leaves_the_ledger(workspace, tmp_path, monkeypatch):
    deploy(workspace)
    (tmp_path / JOB / "egress.jsonl").write_text("what left\n")
    monkeypatch.setattr(AppAuthzService, "validate_app", lambda path: ("no", {}))
    assert deploy(workspace) == "no"
    assert (tmp_path / JOB / "egress.jsonl").read_text().startswith("what left\n")


def test_a_job_that_is_not_deployed_has_its_line_in_the_ledger(workspace, tmp_path, monkeypatch):
    """Once, as the server asks again and again."""
    monkeypatch.setattr(AppAuthzService, "validate_app", lambda path: ("class 'evil' is not allowed", {}))
    meta = {"job_id": JOB, "deploy_map": {"app": ["server", "hospital-1"]}, "submitter_name": "lead@consortium.example"}
    for _ in range(2):
        assert SiteJobs().deploy(workspace, JOB, meta, "app", app("{}"), FLContext())
    (line,) = map(json.loads, (tmp_path / JOB / "egress.jsonl").read_text().splitlines())
    assert (line["job"], line["task"]) == (JOB, "open")
    assert line["asks"]["submitter"]["name"] == "lead@consortium.example"
    assert line["asks"]["deployment"]["sites"] == ["hospital-1"]
    assert line["asks"]["refused"] == ["class 'evil' is not allowed"]


def test_the_server_deletes_nothing_at_a_site():
    deleted = []
    engine: Any = SimpleNamespace(delete_run=deleted.append)
    fl_ctx: Any = SimpleNamespace(get_engine=lambda: engine)
    SiteJobs().handle_event(EventType.SYSTEM_START, fl_ctx)
    assert "keeps what jobs have left" in engine.delete_run("job")
    assert not deleted


@pytest.mark.parametrize("shuts_down", [True, False])
def test_a_site_that_shuts_down_takes_no_job(shuts_down, workspace, tmp_path):
    if shuts_down:
        (tmp_path / SHUTDOWN).touch()
    assert deploy(workspace) == (SHUTS_DOWN if shuts_down else "")
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace)
    SiteJobs().handle_event(EventType.BEFORE_CHECK_RESOURCE_MANAGER, fl_ctx)
    assert fl_ctx.get_prop(FLContextKey.JOB_BLOCK_REASON) == (SHUTS_DOWN if shuts_down else None)


@pytest.mark.parametrize(("soft", "hard"), [(64, 128), (128, 128), (64, None)])
def test_the_start_script_raises_the_limit_as_far_as_it_may(soft, hard):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard
    lower = f"ulimit -Hn {hard};" if hard else ""
    done = subprocess.run(
        ["bash", "-e", "-c", f"ulimit -Sn {soft}; {lower}\n{DESCRIPTORS}\nulimit -Sn"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == (65536 if most == resource.RLIM_INFINITY else min(65536, most))


@pytest.fixture
def stop_script(tmp_path):
    """A site's ``stop_fl.sh``, and the folder that it is in."""
    federation = Federation(tmp_path / "kits", {"hospital-1": Site()}, 18997)
    return federation.kit("hospital-1")


def test_a_stop_outlives_a_job_process_that_removes_it(stop_script):
    """FLARE's does when it starts."""
    file = stop_script / SHUTDOWN
    watchdog = subprocess.Popen(["sleep", "60"])
    (stop_script / "daemon_pid.fl").write_text(str(watchdog.pid))
    stopping = subprocess.Popen(
        ["bash", str(stop_script / "startup" / "stop_fl.sh")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert stopping.stdin
    stopping.stdin.write("y")
    stopping.stdin.close()
    wait(file.exists, 5, "the wish to stop")
    file.unlink()
    wait(file.exists, 5, "the wish to stop, again")
    watchdog.kill()
    watchdog.wait()
    assert stopping.wait(5) == 0
    assert not file.exists()


def test_the_start_script_lowers_no_limit():
    low = DESCRIPTORS.replace("65536", "32")
    done = subprocess.run(["bash", "-c", f"ulimit -Sn 64\n{low}\nulimit -Sn"], capture_output=True, text=True)
    assert done.stdout.strip() == "64"


@pytest.mark.parametrize(
    ("arguments", "said", "stops"), [(["--yes"], "", True), ([], "y", True), ([], "n", False), ([], "", False)]
)
def test_a_site_is_stopped_with_and_without_a_question(arguments, said, stops, stop_script):
    (stop_script / "daemon_pid.fl").write_text(str(2**22 + 1))  # no process: it has ended already
    command = ["bash", "-x", str(stop_script / "startup" / "stop_fl.sh"), *arguments]
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert "This site takes no job from now on" in done.stdout
    assert "last resort" not in done.stdout
    assert ("touch" in done.stderr) == stops
