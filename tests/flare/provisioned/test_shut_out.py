"""A site that an admin shuts out takes no further part in what is running, and everybody is told."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReturnCode, RunProcessKey
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.server.reg import ServerCommandRegister

from pt_peft_flare.messages import SITES_SHUT_OUT
from pt_peft_flare.parent.shut_out import ShutOut
from pt_peft_flare.parent.shut_out_notice import ShutOutNotice

NAMES = ("a", "b", "c")


def client(name: str) -> Any:
    return SimpleNamespace(name=name, token=f"token of {name}")


def server_that_disables(*names: str) -> Any:
    clients = SimpleNamespace(is_client_disabled=lambda name: name in names, disabled_clients={*names})
    return SimpleNamespace(client_manager=clients, admin_server=None)


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


@pytest.mark.parametrize(("disabled", "listed"), [(("c", "b"), ["b", "c"]), ((), [])])
def test_the_servers_status_names_them(disabled, listed):
    register: Any = ServerCommandRegister(None)
    engine: Any = SimpleNamespace(run_processes={}, server=server_that_disables(*disabled))
    watcher = ShutOut()
    watcher.look(engine)
    engine.server.admin_server = SimpleNamespace(cmd_reg=register)
    watcher.look(engine)
    watcher.look(engine)
    [one] = register.filters
    for command, expected in (("check_status", {"pt_peft.shut_out": listed}), ("list_jobs", {})):
        answered = Connection()
        assert one.pre_command(answered, [command, "server"])
        one.post_command(answered, [command, "server"])
        assert answered.buffer.meta == expected


def answer(code: str = ReturnCode.OK, error: str = "", channel: str = CellChannel.SERVER_MAIN) -> Message:
    names = {
        MessageHeaderKey.CHANNEL: channel,
        MessageHeaderKey.RETURN_CODE: code.lower(),
        MessageHeaderKey.ERROR: error,
    }
    return Message(names, None)


def test_the_sites_own_log_says_so_once(caplog):
    notice, disabled = ShutOutNotice(), answer("unauthenticated", "Client 'b' is disabled")
    with caplog.at_level(logging.INFO):
        for one in (answer(), answer("unauthenticated", "Maximum number of clients reached"), answer()):
            notice.hear(one)
        assert not caplog.messages
        for one in (disabled, answer(channel="aux_communication"), disabled, answer("timeout"), disabled):
            notice.hear(one)
        assert len(caplog.messages) == 1
        assert "an admin of the federation has shut this site out" in caplog.messages[0]
        notice.hear(answer())
        notice.hear(answer())
        assert caplog.messages[1:] == ["this site is let in again"]
