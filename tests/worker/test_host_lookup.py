"""Which host a process finds: its own, then the environment's, then the announced one, else a new one."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pt_peft.worker import host_lookup
from pt_peft.worker.host_lookup import HOST_VARIABLE, HostLookup


@dataclass
class FakeHost:
    log: Path
    work: object
    closed: bool = False

    @property
    def socket(self) -> str:
        return f"own/{id(self)}"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def lookup(monkeypatch):
    monkeypatch.setattr(host_lookup, "WorkerHost", FakeHost)
    monkeypatch.setattr(host_lookup, "_REPLACED_S", 0.3)
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    return HostLookup()


@pytest.fixture
def announcement(tmp_path):
    path = tmp_path / "announcement"
    path.write_text("announced")
    return path


def test_the_order(lookup, announcement, tmp_path, monkeypatch):
    assert lookup.find(tmp_path, None, announcement) == "announced"
    monkeypatch.setenv(HOST_VARIABLE, "given")
    assert lookup.find(tmp_path, None, announcement) == "given"
    assert lookup.started is None
    monkeypatch.delenv(HOST_VARIABLE)
    own = lookup.find(tmp_path, None, tmp_path / "nothing announced")
    assert lookup.started
    assert own == lookup.started.socket
    monkeypatch.setenv(HOST_VARIABLE, "given")
    assert lookup.find(tmp_path, None, announcement) == own


def test_a_host_that_is_gone_is_not_found_again(lookup, announcement, tmp_path, monkeypatch):
    monkeypatch.setenv(HOST_VARIABLE, "given")
    assert lookup.replace("given", tmp_path, None, announcement) == "announced"
    announcement.write_text("given")
    first = lookup.replace("given", tmp_path, None, announcement)
    dead = lookup.started
    assert first == dead.socket
    second = lookup.replace(first, tmp_path, None)
    assert dead.closed
    assert second == lookup.started.socket != first
    lookup.close()
    assert lookup.started is None


def test_what_is_announced_is_what_is_found(lookup, announcement, tmp_path, monkeypatch):
    monkeypatch.setenv(HOST_VARIABLE, "given")
    lookup.announce(tmp_path, None, announcement)
    assert announcement.read_text() == "given"
