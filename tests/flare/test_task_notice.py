"""A site asks for a task when it has heard that there is one, and sooner or later in any case."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.private.aux_runner import AuxRunner

from pt_peft_flare import task_notice
from pt_peft_flare.task_notice import TOPIC, TaskNotices, give_notice, ignore_early_notices


class Site:
    """A site and its server, as far as notices go."""

    def __init__(self):
        self.handlers = {}
        self.signal = Signal()
        self.fl_ctx: Any = SimpleNamespace(get_engine=lambda: self, get_run_abort_signal=lambda: self.signal)
        self.notices = TaskNotices(self.fl_ctx)

    def register_aux_message_handler(self, topic, message_handle_func):
        self.handlers[topic] = message_handle_func

    def send_aux_request(self, targets, topic, request, timeout, fl_ctx, optional, secure):
        assert targets is None
        assert timeout == 0.0
        reply = self.handlers[topic](topic, request, fl_ctx)
        assert isinstance(request, Shareable)
        assert reply.get_return_code() == ReturnCode.OK

    def seconds(self) -> float:
        started = time.monotonic()
        self.notices.wait(self.fl_ctx)
        return time.monotonic() - started


@pytest.fixture
def site():
    return Site()


def test_it_waits_for_a_notice(site):
    assert site.seconds() < 0.1  # what was said before it listened it cannot know
    threading.Timer(0.3, give_notice, [site.fl_ctx]).start()
    assert 0.2 < site.seconds() < 1
    assert TOPIC in site.handlers


def test_a_notice_during_the_work_is_not_lost(site):
    site.seconds()
    give_notice(site.fl_ctx)
    assert site.seconds() < 0.1


def test_without_a_notice_it_asks_after_a_while(site, monkeypatch):
    monkeypatch.setattr(task_notice, "LONGEST_S", 0.4)
    site.seconds()
    assert 0.3 < site.seconds() < 1


def test_the_end_of_the_job_ends_the_wait(site):
    site.seconds()
    threading.Timer(0.2, site.signal.trigger, [True]).start()
    assert site.seconds() < 1


def test_a_notice_to_a_site_that_is_starting_is_no_error(caplog):
    ignore_early_notices()
    runner = AuxRunner(None)
    for topic in (TOPIC, "another"):
        assert runner._process_request(topic, Shareable(), FLContext()).get_return_code() == ReturnCode.TOPIC_UNKNOWN
    assert "another" in caplog.text
    assert TOPIC not in caplog.text


def test_outside_of_a_run_there_is_no_signal(monkeypatch):
    monkeypatch.setattr(task_notice, "LONGEST_S", 0.1)
    site = Site()
    site.fl_ctx.get_run_abort_signal = FLContext().get_run_abort_signal
    assert site.seconds() + site.seconds() < 1
