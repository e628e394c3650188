"""A site that an admin shuts out takes no further part in what is running."""

from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReturnCode, RunProcessKey
from nvflare.apis.shareable import Shareable, make_reply

from pt_peft_flare.messages import SITES_SHUT_OUT
from pt_peft_flare.parent.shut_out import ShutOut

NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("answer", "left"),
    [(Shareable(), ["a", "c"]), (None, ["a", "b", "c"]), (make_reply(ReturnCode.EXECUTION_EXCEPTION), ["a", "b", "c"])],
)
def test_the_jobs_process_is_told_until_it_has_heard(answer, left):
    said = []

    def send_app_command(*command):
        said.append(command)
        return answer

    participants = {f"token of {name}": Client(name, f"token of {name}") for name in NAMES}
    engine: Any = SimpleNamespace(
        run_processes={"job": {RunProcessKey.PARTICIPANTS: participants}},
        client_manager=SimpleNamespace(is_client_disabled=lambda name: name == "b"),
        send_app_command=send_app_command,
    )
    watcher = ShutOut()
    watcher.look(engine)
    watcher.look(engine)
    assert [client.name for client in participants.values()] == left
    assert said[0][:3] == ("job", SITES_SHUT_OUT, {"sites": ["b"]})
    assert len(said) == (1 if left == ["a", "c"] else 2)


def test_nobody_is_told_of_nothing():
    participants = {name: Client(name, name) for name in NAMES}
    engine: Any = SimpleNamespace(
        run_processes={"job": {RunProcessKey.PARTICIPANTS: participants}},
        client_manager=SimpleNamespace(is_client_disabled=lambda name: False),
    )
    ShutOut().look(engine)
    assert len(participants) == 3
