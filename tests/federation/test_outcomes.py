"""Whose word of how a job ended the server waits for."""

import threading
from types import SimpleNamespace

import pytest

from pt_peft_flare.parent.outcomes import resolve


@pytest.mark.parametrize(
    ("running", "failed", "resolved"),
    [(["job"], [], {"gone"}), ([], [], {"gone", "there"}), ([], ["job"], {"gone"})],
)
def test_a_site_that_has_gone_is_not_waited_for_nor_any_after_a_good_end(running, failed, resolved):
    given = set()
    runner = SimpleNamespace(
        lock=threading.Lock(),
        _pending_client_outcomes={"job": {"gone", "there"}},
        resolve_client_outcome=lambda job, site: given.add(site),
    )
    clients = [SimpleNamespace(name="there")]
    engine = SimpleNamespace(
        job_runner=runner, run_processes=running, exception_run_processes=failed, get_clients=lambda: clients
    )
    resolve(engine, "job")
    resolve(engine, "another")
    assert given == resolved
