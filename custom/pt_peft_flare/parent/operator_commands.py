"""Keeps commands that FLARE gives to everybody who can log in for those who run the federation."""

from typing import TYPE_CHECKING

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import MetaStatusValue, make_meta
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import CommandFilter

from pt_peft_flare.flare_internals import OPERATOR_COMMANDS
from pt_peft_flare.messages import STATUS, printable
from pt_peft_flare.parent.watcher import Watcher

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine

SCOPE = "cellnet"
"""FLARE's commands about its network: processes and settings of sites, tests of speed, stress."""
OPERATOR = "project_admin"
ASKED_BY_PEOPLE = (STATUS,)
"""Topics of FLARE's `app_command` that people may send to a job. The server itself sends the others."""


class OperatorCommands(Watcher):
    """Refuses commands for which FLARE asks no right, or not enough.

    The hidden ones of `SCOPE` are a project admin's. What the server tells a job, such as that a site is shut out of
    it, nobody may say in its place.
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        """Looks every `interval_s` seconds whether the server takes commands already."""
        super().__init__(interval_s, OPERATOR_COMMANDS)

    def look(self, engine: "ServerEngine") -> None:
        """Begins as soon as the server takes commands, and has then done its work."""
        if admin := engine.server.admin_server:
            admin.cmd_reg.add_filter(OperatorsOnly())
            self.end()


class OperatorsOnly(CommandFilter):
    """Runs before each command of a person."""

    def pre_command(self, conn: Connection, args: list[str]) -> bool:
        """Whether the command may run; if not, the person is told."""
        entry = conn.get_prop(ConnProps.CMD_ENTRY)
        role = conn.get_prop(ConnProps.USER_ROLE)
        if entry.scope.name == SCOPE and role != OPERATOR:
            reason = f"'{entry.name}' is for a {OPERATOR}, not for a {role}"
        elif entry.name == AdminCommandNames.APP_COMMAND and len(args) == 3 and args[2] not in ASKED_BY_PEOPLE:
            reason = f"topic {printable(args[2])!r} is not for people; {', '.join(ASKED_BY_PEOPLE)} is"
        else:
            return True
        conn.append_error(reason, meta=make_meta(MetaStatusValue.NOT_AUTHORIZED, reason))
        return False
