"""How a site joins a running job, and what is left when it does not."""

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.private.admin_defs import error_reply, ok_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, TrainingTopic

from pt_peft_flare.parent import rejoin
from pt_peft_flare.parent.rejoin import Rejoin

STARTS = "Start the client app..."
"""What FLARE says when all is well."""


class Engine:
    """A server with a running job, and one site that has come back under a new token."""

    def __init__(self):
        self.client = Client("back", "new")
        before = Client("back", "old")
        self.participants = {"old": before, "other": Client("other", "other")}
        self.started, self.cancelled, self.asked, self.synchronised = [], [], [], 0
        self.answers = {TrainingTopic.CHECK_STATUS: ok_reply(body=json.dumps({"running_jobs": []}))}
        self.deploys: list[Any] = []
        """Answers to further deployments; afterwards all is well."""
        self.starts: list[Any] = []
        self.reservation: tuple[bool, str] = (True, "reserved")
        self.job_runner = SimpleNamespace(
            running_jobs={"job": Job()},
            lock=threading.Lock(),
            _pending_client_outcomes={"job": {"other"}},
            _make_deploy_message=lambda job, data, app, fl_ctx: SimpleNamespace(topic="deploy"),
            resolve_client_outcome=lambda job, site: self.pending.discard(site),
        )
        self.run_processes = {"job": {"_participants": self.participants}}
        self.server = SimpleNamespace(admin_server=SimpleNamespace(send_requests_and_get_reply_dict=self.send))

    @property
    def told(self):
        """The sites that a site is told of."""
        return [one["name"] for one in self.job_runner.running_jobs["job"].meta[JobMetaKey.JOB_CLIENTS]]

    @property
    def pending(self):
        return self.job_runner._pending_client_outcomes["job"]

    def get_clients(self):
        return [self.client, self.participants["other"]]

    def new_context(self):
        return FLContext()

    def send(self, requests, timeout_secs):
        ((token, message),) = requests.items()
        if message.topic == "deploy":
            return {token: self.deploys.pop(0) if self.deploys else ok_reply(body="deployed")}
        return {token: self.answers[message.topic]}

    def check_client_resources(self, job, resources, fl_ctx):
        self.asked.append(resources)
        return {"back": self.reservation}

    def cancel_client_resources(self, checked, resources, fl_ctx):
        self.cancelled.append(checked)

    def send_app_command(self, job_id, topic, data, timeout):
        self.synchronised += 1

    def start_client_job(self, job, dispatch, fl_ctx):
        self.started.append(sorted(self.participants))
        return [SimpleNamespace(reply=self.starts.pop(0) if self.starts else ok_reply(body=STARTS))]


class Job:
    job_id = "job"
    run_aborted = False

    def __init__(self):
        self.meta: dict[str, Any] = {
            JobMetaKey.JOB_CLIENTS: [Client("other", "other").to_dict()],
            JobMetaKey.DEPLOY_MAP: {"app": ["@ALL"]},
            JobMetaKey.RESOURCE_SPEC: {"@default": {"num_of_gpus": 2}, "other": {"num_of_gpus": 1}},
        }

    def get_application(self, app, fl_ctx):
        return b""


@pytest.fixture
def engine(monkeypatch) -> Any:
    monkeypatch.setattr(rejoin.RunProcessKey, "PARTICIPANTS", "_participants")
    return Engine()


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(rejoin, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_good_start_is_no_failure(engine, clock, caplog):
    caplog.set_level("INFO")
    Rejoin().look(engine)
    assert engine.participants.keys() == {"new", "other"}
    assert engine.pending == {"back", "other"}
    assert engine.told == ["other", "back"]
    assert engine.started == [["new", "other"]]
    assert not engine.cancelled
    assert "back has joined the running job job" in caplog.text
    assert "cannot" not in caplog.text


@pytest.mark.parametrize("answer", [None, ok_reply(body=f"{ERROR_MSG_PREFIX}: Start job execution exception: full.")])
def test_a_start_that_fails_is_undone_and_tried_again(answer, engine, clock, caplog):
    engine.starts = [answer]
    watch = Rejoin()
    watch.look(engine)
    assert engine.participants.keys() == {"old", "other"}
    assert engine.pending == {"other"}
    assert engine.told == ["other"]
    assert engine.cancelled == [{"back": (True, "reserved")}]
    assert engine.synchronised == 2  # taken in, and out again
    assert "back cannot join the running job job yet: " in caplog.text
    watch.look(engine)
    assert len(engine.started) == 1
    clock.seconds += 2
    watch.look(engine)
    assert engine.participants.keys() == {"new", "other"}
    assert engine.pending == {"back", "other"}


@pytest.mark.parametrize("answer", [None, error_reply("the site is shutting down")])
def test_a_silence_or_a_refusal_bars_no_site(answer, engine, clock, caplog):
    engine.deploys = [answer] * 7
    watch = Rejoin()
    pauses, last = [], clock.seconds
    for _ in range(400):
        left = len(engine.deploys)
        watch.look(engine)
        if len(engine.deploys) < left:
            pauses.append(clock.seconds - last)
            last = clock.seconds
        clock.seconds += 1
    assert pauses == [0, 2, 4, 8, 16, 32, 60]
    assert engine.participants.keys() == {"new", "other"}
    assert caplog.text.count("cannot join") == 1  # said once, as the reason stays the same


def test_a_site_takes_as_many_gpus_as_those_of_the_start(engine, clock):
    engine.job_runner.running_jobs["job"].meta[JobMetaKey.RESOURCE_SPEC.value] = {
        "@default": {"num_of_gpus": 2, "num_of_cpus": 8}, "other": {"num_of_gpus": 1}
    }  # fmt: skip
    Rejoin().look(engine)
    assert engine.asked == [{"back": {"num_of_gpus": 2}}]


def test_resources_in_use(engine, clock, caplog):
    engine.reservation = (False, "no GPU")
    Rejoin().look(engine)
    assert not engine.started
    assert engine.participants.keys() == {"old", "other"}
    assert "its resources are in use (no GPU)" in caplog.text


def test_a_site_that_has_started_after_all_is_taken_in_and_nothing_is_deployed_over_it(engine, clock):
    engine.answers[TrainingTopic.CHECK_STATUS] = ok_reply(body=json.dumps({"running_jobs": [{"job_id": "job"}]}))
    engine.deploys = [error_reply("never")]
    Rejoin().look(engine)
    assert engine.participants.keys() == {"new", "other"}
    assert not engine.started
    assert engine.deploys


def test_a_job_that_is_over_is_forgotten(engine, clock):
    engine.deploys = [None]
    watch = Rejoin()
    watch.look(engine)
    assert watch._failed
    engine.job_runner.running_jobs.clear()
    watch.look(engine)
    assert not watch._failed
