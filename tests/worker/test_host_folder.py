"""A host's folder: what is left of killed hosts goes, what belongs to others stays."""

import os
import time

import pytest

from pt_peft.errors import UserError
from pt_peft.worker.host_process import WorkerHost


def test_what_killed_hosts_have_left_is_removed(tmp_path_factory, monkeypatch):
    tmp_path = tmp_path_factory.mktemp("t")  # a short path
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hosts = [WorkerHost(tmp_path / "host.log") for _ in range(3)]
    killed, running, just_killed = hosts
    for host in (killed, just_killed):
        host._process.kill()
        host.wait()
    other = tmp_path / "pt-peft-without-a-socket"
    other.mkdir()
    long_ago = time.time() - 3600
    for folder in (killed._folder.name, running._folder.name, other):
        os.utime(folder, (long_ago, long_ago))
    new = WorkerHost(tmp_path / "host.log")
    assert not os.path.exists(killed._folder.name)
    assert other.exists()
    assert all(os.path.exists(host.socket) for host in (running, just_killed, new))
    for host in (*hosts, new):
        host.close()


def test_a_path_too_long_for_a_socket(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(UserError, match=r"cannot be started .*path too long.* a short path, as TMPDIR"):
        WorkerHost(tmp_path / "host.log")
    assert not list(folder.iterdir())
