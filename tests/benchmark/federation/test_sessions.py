"""Sessions of FLARE's API end with the federation that they were opened to."""

import threading
from contextlib import suppress

from nvflare.fuel.flare_api.api_spec import NoConnection
from nvflare.fuel.flare_api.flare_api import Session

from benchmark.federation import provisioned
from benchmark.federation.lead import Lead
from benchmark.federation.provisioned import Federation
from pt_peft.experiment.site import Site


def looking_for_a_server() -> list[threading.Thread]:
    """FLARE's threads that Python waits for at its end."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("conn_mgr")]


def test_no_thread_is_left_that_would_keep_this_process(tmp_path, monkeypatch):
    def open_session(user: str, kit: str) -> Session:
        session = Session(user, kit)
        with suppress(NoConnection):  # nobody listens, which its threads do not mind
            session.try_connect(0.5)
        return session

    monkeypatch.setattr(provisioned, "new_secure_session", open_session)
    federation = Federation(tmp_path, {"hospital-1": Site()}, port=1)
    lead = Lead(federation, tmp_path)
    assert len(looking_for_a_server()) == 1
    lead.connect()
    assert len(looking_for_a_server()) == 1, "the first has ended"
    federation.session(provisioned.ADMIN)
    federation.close()
    assert not looking_for_a_server()
