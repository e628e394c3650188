"""Whose worker host a FLARE process uses."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import ProcessType

from helpers import simulated
from pt_peft.errors import UserError
from pt_peft.worker.host_lookup import HOST_VARIABLE, HOSTS
from pt_peft_flare import site_worker as workers
from pt_peft_flare.site_worker import ANNOUNCEMENT, RespawningWorker, close_host, start_host


@pytest.fixture
def site_ctx(tmp_path, monkeypatch):
    """What FLARE tells a component of a simulated site."""
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    engine = simulated(SimpleNamespace(get_run_dir=lambda job: str(tmp_path / "site-1" / job)))
    yield SimpleNamespace(
        get_engine=lambda: engine,
        get_job_id=lambda: "simulate_job",
        get_identity_name=lambda: "site-1",
        get_process_type=lambda: ProcessType.CLIENT_JOB,
        get_prop=lambda key: None,
    )
    close_host()


@pytest.fixture
def said(tmp_path):
    """Where the simulated server says which host it has."""
    path = tmp_path / "server" / "simulate_job" / ANNOUNCEMENT
    path.parent.mkdir(parents=True)
    return path


def test_a_simulated_site_uses_the_servers(tiny, site, site_ctx, said, shared_host, tmp_path):
    start_host(site_ctx)
    assert HOSTS.started is None
    worker = RespawningWorker(tiny, site, tmp_path / "run", site_ctx)
    said.write_text(shared_host.socket)  # which may be after the site has started
    assert worker.call("exchange")[0]["tensors"]
    assert HOSTS.started is None
    worker.close()


def test_a_simulated_site_waits_for_what_the_server_starts_in_its_place(
    tiny, site, site_ctx, said, shared_host, tmp_path
):
    said.write_text(str(tmp_path / "gone"))
    threading.Timer(0.5, said.write_text, [shared_host.socket]).start()
    worker = RespawningWorker(tiny, site, tmp_path / "run", site_ctx)
    assert worker.call("exchange")[0]["tensors"]
    assert HOSTS.started is None
    worker.close()


def test_a_simulated_server_replaces_a_host_that_was_killed(tiny, site, site_ctx, said, tmp_path, monkeypatch):
    site_ctx.get_process_type = lambda: ProcessType.SERVER_JOB
    monkeypatch.setattr(workers, "run_dir", lambda fl_ctx: said.parent)
    monkeypatch.setattr(workers, "read_experiment", lambda fl_ctx: tiny)
    monkeypatch.setattr(workers, "read_site", lambda fl_ctx: site)
    start_host(site_ctx)
    first = said.read_text()
    assert HOSTS.started
    assert first == HOSTS.started.socket
    os.kill(HOSTS.started._process.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while (second := said.read_text()) == first and time.monotonic() < until:
        time.sleep(0.05)
    assert second == HOSTS.started.socket != first
    worker = RespawningWorker(tiny, site, tmp_path / "run", site_ctx)
    assert worker.call("exchange")[0]["tensors"]
    worker.close()
    close_host()
    time.sleep(0.5)
    assert HOSTS.started is None
    assert said.read_text() == second


def test_a_host_that_cannot_be_started_is_said_when_it_is_needed(tiny, site, site_ctx, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no"))
    site_ctx.get_process_type = lambda: ProcessType.SERVER_JOB
    monkeypatch.setattr(workers, "read_experiment", lambda fl_ctx: tiny)
    monkeypatch.setattr(workers, "read_site", lambda fl_ctx: site)
    start_host(site_ctx)
    with pytest.raises(UserError, match=r"worker host cannot be started .*No such file.* as TMPDIR, would be right"):
        RespawningWorker(tiny, site, tmp_path / "run", site_ctx).call("exchange")


def test_if_that_is_gone_all_of_a_process_share_one_of_its_own(tiny, site, site_ctx, said, tmp_path):
    said.write_text(str(tmp_path / "gone"))
    first, second = (RespawningWorker(tiny, site, tmp_path / name, site_ctx) for name in ("one", "two"))
    assert first.call("exchange")[0]["tensors"]
    own = HOSTS.started
    assert own
    assert second.call("exchange") == first.call("exchange")  # by the same workers as before
    assert HOSTS.started is own
    assert own.runs
    first.close()
    second.close()
