"""What the lead is told of jobs and sites."""

from types import SimpleNamespace
from typing import Any

from nvflare.fuel.flare_api.api_spec import JobNotRunning

from pt_peft_flare.commands.status import status, table
from pt_peft_flare.progress import progress

SITE = {"now": "answered", "version": "0.2.0", "rounds": 2, "bytes_in": 2000, "bytes_out": 1000}
PROGRESS = {
    "finished_rounds": 2,
    "finished_stages": 0,
    "stages": 0,
    "continues": None,
    "continued_rounds": 0,
    "rounds": 3,
    "seconds_left": 12.4,
    "sites": {"a": {**SITE, "precision": "bfloat16"}, "b": SITE},
}
NOW = 1_000_000.0
"""The server's clock, which is not that of whoever asks."""


class FakeSession:
    def __init__(self, shut_out=(), meta=None, **jobs):
        self._jobs, self._shut_out, self._meta = jobs, [*shut_out], meta or {}

    def do_command(self, command):
        assert command == "check_status server"
        return {"meta": {"pt_peft.shut_out": self._shut_out}}

    def get_job_meta(self, job):
        return self._meta

    def get_system_info(self):
        seen = {"a": NOW - 5, "c": NOW - 9}
        return SimpleNamespace(
            client_info=[SimpleNamespace(name=name, last_connect_time=at) for name, at in seen.items()]
        )

    def list_jobs(self):
        return [{"job_id": name, "status": "RUNNING"} for name in self._jobs]

    def get_job_status(self, job):
        return {"over": "FINISHED:COMPLETED", "failed": "FINISHED:EXECUTION_EXCEPTION"}.get(self._jobs[job], "RUNNING")

    def do_app_command(self, job, topic, data):
        if self._jobs[job] == "starts":
            raise JobNotRunning("not yet")
        return {"time": NOW, "experiment": job, **PROGRESS}


def session(**options) -> Any:
    return FakeSession(**options)


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
        "bfloat16,",
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
    assert "one  FINISHED:COMPLETED  its results: nvflare job download" in table(status(session(one="over"), "one"))
    assert "one  FINISHED:ABORTED  why: nvflare job download" in table(
        {"sites": {}, "shut_out": [], "jobs": {"one": {"status": "FINISHED:ABORTED"}}}
    )
    assert table(status(session(), None)).startswith("no job is running")


def test_why_a_job_has_failed():
    """So that nobody has to look for it: FLARE's own table of a job's metadata leaves it out."""
    meta = {
        "reason": "round 2, task 'train': 1 of 2 sites gave\na valid result",
        "job_deploy_detail": ["server: OK", "a: NVFLARE_ERROR: component is not allowed", "b: OK"],
    }
    found = status(session(one="failed", meta=meta), "one")
    assert found["jobs"]["one"].get("reason") == meta["reason"]
    lines = table(found).splitlines()
    assert lines[0].endswith("FINISHED:EXECUTION_EXCEPTION  round 2, task 'train': 1 of 2 sites gave a valid result")
    assert lines[1].split() == ["a", "did", "not", "take", "the", "job:", "component", "is", "not", "allowed"]
    assert "why: nvflare job download" in table(status(session(one="failed"), "one"))


def test_a_site_that_is_shut_out_does_not_vanish():
    found = status(session(shut_out=["d"]), None)
    assert found["shut_out"] == ["d"]
    assert table(found).splitlines()[-1].split()[:6] == ["d", "shut", "out", "by", "an", "admin,"]


def record(job: str, rounds: list[tuple[str, float]], continues: str | None = None) -> tuple[Any, Any]:
    """A job's record and its rounds, by the job and seconds of each round."""
    report = {"bytes_in": 100, "bytes_out": 10, "code": {"version": "1"}}
    content = {
        "job": job,
        "continues": continues,
        "code": {"version": "1"},
        "experiment": {"name": "x"},
        "statistics": [],
    }
    return content, [{"job": one, "seconds": seconds, "sites": {"a": report}} for one, seconds in rounds]


def test_the_first_round_says_nothing_of_the_others():
    """Every process starts up in it."""
    rounds = [("J", 170.0)]
    assert progress(*record("J", rounds), 10, 0, {}, {})["seconds_left"] is None
    rounds += [("J", 500.0), *[("J", 8.0)] * 5]
    assert progress(*record("J", rounds), 10, 0, {}, {})["seconds_left"] == 3 * 8.0
    rounds += [("K", 170.0), ("K", 6.0)]
    assert progress(*record("K", rounds, "J"), 10, 0, {}, {})["seconds_left"] == 6.0


def test_stages_of_statistics_are_counted_with_their_bytes():
    """Again for a site that was late for one."""
    stages: Any = [
        {"when": "start", "stage": stage, "job": "J", "sites": {site: {"bytes_out": sent, "code": {"version": "1"}}}}
        for stage, site, sent in (("counts", "a", 8), ("counts", "b", 8), ("moments", "a", 800))
    ]
    content: Any = {**record("J", [])[0], "statistics": stages}
    found = progress(content, [], 4, 3, {"a": "training", "c": "training"}, {})
    assert (found["finished_stages"], found["stages"]) == (2, 3)
    assert (found["sites"]["a"]["bytes_out"], found["sites"]["a"]["version"]) == (808, "1")
    assert found["sites"]["c"]["version"] is None
    shown = table({"sites": {}, "shut_out": [], "jobs": {"K": {"status": "RUNNING", **found}}})  # pyright: ignore[reportArgumentType]
    assert "x: 0 of 4 rounds, 2 of 3 stages of statistics" in shown


def test_what_a_clone_says_of_bytes_is_of_its_own_rounds():
    """So that they sum to its ledgers."""
    rounds = [("J", 5.0), ("J", 5.0), ("K", 5.0)]
    found = progress(*record("K", rounds, "J"), 4, 0, {"a": "training", "b": "training"}, {"a": 200})
    assert (found["finished_rounds"], found["continued_rounds"]) == (3, 2)
    assert (found["sites"]["a"]["bytes_in"], found["sites"]["a"]["bytes_out"]) == (200, 10)
    assert found["sites"]["b"]["bytes_in"] == 0
    shown = table({"sites": {}, "shut_out": [], "jobs": {"K": {"status": "RUNNING", **found}}})  # pyright: ignore[reportArgumentType]
    assert "x: 3 of 4 rounds (2 of them in job J, which it continues)" in shown
