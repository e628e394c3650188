"""Keeps commands that FLARE gives to everybody who can log in for those who run the federation."""

from typing import TYPE_CHECKING

from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import MetaStatusValue, make_meta
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import CommandFilter

from pt_peft_flare.flare_internals import OPERATOR_COMMANDS
from pt_peft_flare.parent.watcher import Watcher

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine

SCOPE = "cellnet"
"""FLARE's commands about its network: processes and settings of sites, tests of speed, stress."""
OPERATOR = "project_admin"


class OperatorCommands(Watcher):
    """Refuses the hidden commands of `SCOPE`, for which FLARE asks no right, to all but a project admin."""

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
        if entry.scope.name != SCOPE or role == OPERATOR:
            return True
        reason = f"'{entry.name}' is for a {OPERATOR}, not for a {role}"
        conn.append_error(reason, meta=make_meta(MetaStatusValue.NOT_AUTHORIZED, reason))
        return False
