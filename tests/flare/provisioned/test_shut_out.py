"""A site that an admin shuts out takes no further part in what is running."""

from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReturnCode, RunProcessKey
from nvflare.apis.shareable import Shareable, make_reply

from pt_peft_flare.messages import SITES_SHUT_OUT
from pt_peft_flare.parent.shut_out import ShutOut

NAMES = ("a", "b", "c")


def client(name: str) -> Any:
    return SimpleNamespace(name=name, token=f"token of {name}")


def server_that_disables(*names: str) -> Any:
    return SimpleNamespace(client_manager=SimpleNamespace(is_client_disabled=lambda name: name in names))


@pytest.mark.parametrize(
    ("answer", "left"),
    [(Shareable(), ["a", "c"]), (None, ["a", "b", "c"]), (make_reply(ReturnCode.EXECUTION_EXCEPTION), ["a", "b", "c"])],
)
def test_the_jobs_process_is_told_until_it_has_heard(answer, left):
    said = []

    def send_app_command(*command):
        said.append(command)
        return answer

    participants = {client(name).token: client(name) for name in NAMES}
    engine: Any = SimpleNamespace(
        run_processes={"job": {RunProcessKey.PARTICIPANTS: participants}},
        server=server_that_disables("b"),
        send_app_command=send_app_command,
    )
    watcher = ShutOut()
    watcher.look(engine)
    watcher.look(engine)
    assert [one.name for one in participants.values()] == left
    assert said[0][:3] == ("job", SITES_SHUT_OUT, {"sites": ["b"]})
    assert len(said) == (1 if left == ["a", "c"] else 2)


def test_nobody_is_told_of_nothing():
    participants = {client(name).token: client(name) for name in NAMES}
    engine: Any = SimpleNamespace(
        run_processes={"job": {RunProcessKey.PARTICIPANTS: participants}},
        server=server_that_disables(),
    )
    ShutOut().look(engine)
    assert len(participants) == 3
