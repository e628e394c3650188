"""What the lead is told of jobs and sites."""

from types import SimpleNamespace
from typing import Any

from nvflare.fuel.flare_api.api_spec import JobNotRunning

from pt_peft_flare.commands.status import status, table

SITE = {"now": "answered", "version": "0.2.0", "rounds": 2, "bytes_in": 2000, "bytes_out": 1000}
PROGRESS = {"finished_rounds": 2, "rounds": 3, "seconds_left": 12.4, "sites": {"a": SITE, "b": SITE}}
NOW = 1_000_000.0
"""The server's clock, which is not that of whoever asks."""


class FakeSession:
    def __init__(self, **jobs):
        self._jobs = jobs

    def get_system_info(self):
        seen = {"a": NOW - 5, "c": NOW - 9}
        return SimpleNamespace(
            client_info=[SimpleNamespace(name=name, last_connect_time=at) for name, at in seen.items()]
        )

    def list_jobs(self):
        return [{"job_id": name, "status": "RUNNING"} for name in self._jobs]

    def get_job_status(self, job):
        return "FINISHED:COMPLETED" if self._jobs[job] == "over" else "RUNNING"

    def do_app_command(self, job, topic, data):
        if self._jobs[job] == "starts":
            raise JobNotRunning("not yet")
        return {"time": NOW, "experiment": job, **PROGRESS}


def session(**jobs) -> Any:
    return FakeSession(**jobs)


def test_two_jobs_at_once():
    found = status(session(one="runs", two="runs"), None)
    assert found["sites"] == {"a": {"last_seen_s": 5.0}, "c": {"last_seen_s": 9.0}}
    lines = table(found).splitlines()
    assert lines[0] == "one  RUNNING  one: 2 of 3 rounds, about 12 s left"
    assert lines[1].split() == [
        "a",
        "2",
        "round(s),",
        "2.0",
        "kB",
        "in,",
        "1.0",
        "kB",
        "out,",
        "version",
        "0.2.0,",
        "seen",
        "5",
        "s",
        "ago:",
        "answered",
    ]
    assert lines[2].split()[0] == "b"
    assert "seen long ago" in lines[2]
    assert "seen 5 s ago" in lines[4]
    assert lines[-1].split() == ["c", "connected,", "seen", "9", "s", "ago"]
    assert len(lines) == 7


def test_a_job_that_starts_and_one_that_is_over():
    assert "one  RUNNING  starts up or ends" in table(status(session(one="starts"), None))
    assert "one  FINISHED:COMPLETED  its metrics and adapter: nvflare job download" in table(
        status(session(one="over"), "one")
    )
    assert "one  FINISHED:ABORTED  why: nvflare job download" in table(
        {"sites": {}, "jobs": {"one": {"status": "FINISHED:ABORTED"}}}
    )
    assert table(status(session(), None)).startswith("no job is running")
