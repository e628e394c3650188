"""A person's connection to a federation leaves the process as it was."""

import json
import logging

import pytest

from pt_peft.errors import UserError
from pt_peft_flare.admin_session import connected

CONNECT = "nvflare.fuel.flare_api.flare_api.new_secure_session"


class Session:
    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def kit(tmp_path):
    path = tmp_path / "startup" / "fed_admin.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"admin": {"username": "lead@consortium.example"}}))
    return str(tmp_path)


@pytest.fixture(params=[logging.NOTSET, logging.DEBUG])
def disabled(request):
    logging.disable(request.param)
    yield request.param
    logging.disable(logging.NOTSET)


def test_flare_logs_nothing_while_it_is_used_and_as_before_afterwards(kit, disabled, monkeypatch):
    session = Session()
    monkeypatch.setattr(CONNECT, lambda user, folder, timeout: session)
    with connected(kit):
        assert not logging.getLogger("nvflare").isEnabledFor(logging.ERROR)
    assert logging.root.manager.disable == disabled
    assert session.closed


def test_logs_are_as_before_when_it_fails(kit, disabled, monkeypatch):
    def refuse(user, folder, timeout):
        raise ValueError("nobody there")

    monkeypatch.setattr(CONNECT, refuse)
    sentence = r"the server does not answer lead@consortium\.example \(nobody there\)"
    with pytest.raises(UserError, match=sentence), connected(kit):
        pass
    assert logging.root.manager.disable == disabled


def test_what_the_server_refuses_is_one_sentence(kit, disabled, monkeypatch):
    session = Session()
    monkeypatch.setattr(CONNECT, lambda user, folder, timeout: session)
    with pytest.raises(UserError, match="the server refuses: no such job"), connected(kit):
        raise ValueError("no such job")
    assert logging.root.manager.disable == disabled
    assert session.closed


def test_a_folder_that_is_no_kit(tmp_path):
    with pytest.raises(UserError, match="is not the start-up kit of a lead or an admin"), connected(str(tmp_path)):
        pass
