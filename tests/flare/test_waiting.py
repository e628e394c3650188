"""How long a round waits for whom: FLARE's own communicator, with sites that are silent, shut out or killed."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import nvflare.apis.client
import nvflare.apis.fl_context
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReservedTopic
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.private.fed.server.client_manager import ClientManager

from pt_peft import reasons
from pt_peft.schema import Strict
from pt_peft_flare import signs_of_life
from pt_peft_flare.controller import PeftFedAvg
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.site_tasks import Delivery, SiteTask

SITES = ["a", "b", "c"]
flare: Any = nvflare.apis


def client(name: str) -> Any:
    return flare.client.Client(name, f"token of {name}")


class Job:
    """A job's controller and FLARE's communicator, in a server whose sites are in the test's hands."""

    def __init__(self, sites=SITES, silence_s: Any = 0.5, deadline_s=8):
        self.client_manager = ClientManager("project")
        self.client_manager.set_clients({f"token of {name}": client(name) for name in sites})
        self.contexts = flare.fl_context.FLContextManager(self, "server", "job", {}, {})
        self.sent = []
        self.server = SimpleNamespace(client_manager=self.client_manager)
        self.controller: Any = PeftFedAvg()
        self.communicator: Any = WFCommServer()
        self.communicator.controller = self.controller
        self.controller.set_communicator(self.communicator)
        self.controller.engine = self
        self.controller.fl_ctx = self.contexts.new_context()
        self.controller.abort_signal = Signal()
        self.controller._life.listen(self.communicator)
        self.communicator._engine = self
        deliveries = [Delivery(list(sites), {"head.bias": np.zeros(2, np.float32)}, 0)]
        self.task = SiteTask("train", 0, 1, deadline_s, silence_s, 2, deliveries)
        self.ids = {}
        self.values = {}

    def _accept(self, result) -> Strict:
        site = result.meta["client_name"]
        assert site not in self.values
        self.values[site] = float(result.params["head.bias"][0])
        return Strict()

    def new_context(self) -> FLContext:
        return self.contexts.new_context()

    def get_clients(self) -> list[Any]:
        return list(self.client_manager.clients.values())

    def fire_event(self, event_type, fl_ctx):
        pass

    def send_aux_request(self, targets, topic, **options):
        self.sent.append((targets, topic))

    def sign_of_life(self, *sites):
        for site in sites:
            self.communicator.client_is_active(site, "jobHeartbeat", self.new_context())

    def fetch(self, site) -> str:
        """Asks for a task as `site`. Returns its name."""
        self.sign_of_life(site)  # by FLARE's runner
        name, task_id, _ = self.communicator.process_task_request(client(site), self.new_context())
        self.ids[site] = task_id or self.ids.get(site)
        return name

    def submit(self, site, value=1.0):
        result = DXO(DataKind.WEIGHTS, data={"head.bias": np.full(2, value, np.float32)}).to_shareable()
        fl_ctx = self.new_context()
        fl_ctx.set_prop(FLContextKey.TASK_RESULT, result)
        self.communicator.process_submission(client(site), "train", self.ids[site], result, fl_ctx)

    def answer(self, *sites):
        for site in sites:
            assert self.fetch(site) == "train"
            self.submit(site)

    def ask(self, meanwhile: Callable[[], None]) -> tuple[RoundResults[Any], float]:
        """The results of the task, and how many seconds they took. `meanwhile` runs beside."""
        beside = threading.Timer(0.1, meanwhile)
        beside.start()
        self.values.clear()
        started = time.monotonic()
        results = self.controller.ask(self.task, self._accept)
        beside.join()
        return results, time.monotonic() - started


@pytest.fixture
def job() -> Job:
    return Job()


def test_all_answer(job):
    results, seconds = job.ask(lambda: job.answer(*SITES))
    assert list(results.reports) == SITES
    assert not results.left_out
    assert seconds < 0.5


def test_a_silent_site_costs_its_silence_once(job):
    job.sign_of_life(*SITES)
    results, seconds = job.ask(lambda: job.answer("a", "b"))
    assert list(results.reports) == ["a", "b"]
    assert results.left_out.keys() == {"c"}
    assert results.left_out["c"].reason.to_json()["code"] == "silent"
    assert 0.3 < seconds < 2
    job.sign_of_life("a", "b")
    assert job.controller.present_sites(0.4) == ["a", "b"]
    job.task = replace(job.task, deliveries=[Delivery(["a", "b"], {}, 0)])
    results, seconds = job.ask(lambda: (job.sign_of_life("c"), job.answer("a", "b")))
    assert seconds < 0.4
    assert results.left_out.keys() == {"c"}, "metrics.json says so in each round"
    assert results.left_out["c"].reason.to_json()["code"] == "silent", "as it was when the others were asked"
    assert job.controller.present_sites(0.4) == SITES


def test_a_site_that_trains_is_waited_for(job):
    def train():
        job.answer("a", "b")
        job.fetch("c")
        for _ in range(8):
            time.sleep(0.2)
            job.sign_of_life("c")
        job.submit("c")

    results, seconds = job.ask(train)
    assert not results.left_out
    assert seconds > 1.5


def test_a_site_may_come_back_while_others_train(job):
    job.sign_of_life(*SITES)
    done = []

    def meanwhile():
        job.answer("a")
        for _ in range(5):
            time.sleep(0.2)
            job.sign_of_life("b")
        job.answer("c")  # after a second of silence
        done.append(job.fetch("b"))
        job.submit("b")

    results, _ = job.ask(meanwhile)
    assert done == ["train"]
    assert not results.left_out


def test_below_the_quorum_silent_sites_are_waited_for_until_the_deadline():
    job = Job(deadline_s=2)
    job.sign_of_life(*SITES)
    results, seconds = job.ask(lambda: job.answer("a"))
    assert 1.8 < seconds < 4
    assert list(results.reports) == ["a"]
    assert results.left_out.keys() == {"b", "c"}


def test_below_the_quorum_a_silent_site_that_comes_back_saves_the_round(job):
    job.sign_of_life(*SITES)

    def meanwhile():
        job.answer("a")
        time.sleep(1)
        job.answer("b")

    results, seconds = job.ask(meanwhile)
    assert list(results.reports) == ["a", "b"]
    assert 1 < seconds < 2


def test_a_site_that_was_never_heard_of_may_take_longer(job, monkeypatch):
    monkeypatch.setattr(signs_of_life, "START_S", 1.2)
    results, seconds = job.ask(lambda: job.answer("a", "b"))
    assert 1 < seconds < 2.5
    assert str(results.left_out["c"]).startswith("silent for 1 s")


def shut_out(job, *sites):
    job.controller._participants.shut_out("", {"sites": list(sites)}, SimpleNamespace(get_engine=lambda: job))


def test_a_site_that_is_shut_out_is_not_waited_for_and_cannot_answer(job):
    def meanwhile():
        job.answer("a", "b")
        job.fetch("c")
        shut_out(job, "c")

    results, seconds = job.ask(meanwhile)
    assert results.left_out["c"].reason == reasons.ShutOut()
    assert seconds < 0.4
    assert job.sent[-1] == (["c"], ReservedTopic.END_RUN)
    assert "token of c" not in job.client_manager.get_clients(), "by which FLARE refuses what it still sends"
    assert job.controller.present_sites(1) == ["a", "b"]


def test_shutting_out_too_many_ends_the_round_at_once(job):
    def meanwhile():
        job.answer("a")
        shut_out(job, "b", "c")

    results, seconds = job.ask(meanwhile)
    assert seconds < 0.4
    assert list(results.reports) == ["a"]


def test_a_site_that_is_let_in_again_takes_part(job):
    shut_out(job, "c")

    def sync():
        job.client_manager.set_clients({name: client(name) for name in SITES})

    engine = SimpleNamespace(sync_clients_from_main_process=sync, get_clients=lambda: map(client, SITES))
    job.controller._participants.changed("", {}, SimpleNamespace(get_engine=lambda: engine))
    assert job.controller.present_sites(1) == SITES


def test_a_result_that_is_sent_twice_counts_once(job):
    """As when the line was cut before FLARE's answer: whatever the second copy holds."""

    def meanwhile():
        job.answer("a")
        job.submit("a", value=9.0)
        job.answer("b", "c")

    results, _ = job.ask(meanwhile)
    job.submit("a", value=9.0)  # after the round too
    assert job.values == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert not results.left_out


def test_the_death_that_flare_reports_is_no_end_of_a_task(job):
    """By FLARE's own rule a job ends when too few sites are left for ``min_clients``."""
    job.sign_of_life("c")
    job.communicator.process_dead_client_report("c", job.new_context())
    assert job.communicator.get_client_disconnect_time("c") is None
    assert not job.communicator._dead_clients


@pytest.mark.parametrize(
    ("task", "quiet_s", "expected"),
    [("train", 0, "training"), ("validate", 0, "evaluating"), ("train", 45, "silent for 45 s")],
)
def test_what_a_site_does(job, monkeypatch, task, quiet_s, expected):
    deliveries = [Delivery(["a"], {}, 0)]
    job.controller._task = SiteTask(task, 0, 1, 8, 100, 2, deliveries)
    monkeypatch.setattr(job.controller._life, "silent_s", lambda site: quiet_s)
    assert job.controller._doing("a") == expected
    assert job.controller._doing("elsewhere") == f"not connected in the {quiet_s} s of the job"
    if not quiet_s:
        assert job.controller._doing("b") == "waits for the next round"
    shut_out(job, "a")
    assert job.controller._doing("a") == "was shut out"


def test_what_a_site_is_sent_counts_as_soon_as_it_is_sent(job):
    """Again if it is sent again."""
    sent = DXO(DataKind.WEIGHTS, data={"head.bias": np.zeros(2, np.float32)}).to_shareable()
    for task, data in (("train", sent), ("train", sent), ("submit_model", Shareable())):  # the last sends nothing
        fl_ctx, peer = job.new_context(), FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=False)
        fl_ctx.set_peer_context(peer)
        fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.TASK_DATA, data, private=True, sticky=False)
        job.controller.handle_event(EventType.AFTER_TASK_DATA_FILTER, fl_ctx)
    assert job.controller._sent == {"a": 16}
