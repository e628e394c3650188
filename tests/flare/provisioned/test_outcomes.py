"""Whose word of how a job ended the server waits for."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys

from pt_peft_flare.parent.outcomes import of_one_site, resolve


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
    engine: Any = SimpleNamespace(
        job_runner=runner, run_processes=running, exception_run_processes=failed, get_clients=lambda: clients
    )
    resolve(engine, "job")
    resolve(engine, "another")
    assert given == resolved


@pytest.mark.parametrize(("there", "code"), [({"bad", "a", "b"}, 127), ({"bad", "a"}, 101), (set(), 101)])
def test_a_site_that_fails_ends_the_job_only_below_the_quorum(there, code):
    job = SimpleNamespace(min_sites=2)
    runner = SimpleNamespace(lock=threading.Lock(), _pending_client_outcomes={"job": there}, running_jobs={"job": job})
    manager = SimpleNamespace(clients={"token": SimpleNamespace(name="bad")})
    server: Any = SimpleNamespace(engine=SimpleNamespace(job_runner=runner), client_manager=manager)

    def reported(job_id, token, code=101):
        request = Message(headers={CellMessageHeaderKeys.TOKEN: token}, payload={"job_id": job_id, "code": code})
        return of_one_site(server, request).payload["code"]

    assert reported("job", "token") == code
    assert reported("another", "token") == reported("job", "unknown") == 101
    assert reported("job", "token", code=0) == 0
