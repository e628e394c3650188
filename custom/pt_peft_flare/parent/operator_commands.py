"""Keeps commands that FLARE gives to everybody who can log in for those who run the federation."""

from typing import TYPE_CHECKING, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import MetaStatusValue, make_meta
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import CommandFilter

from pt_peft_flare.flare_internals import OPERATOR_COMMANDS

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine

SCOPE = "cellnet"
"""FLARE's commands about its network: processes and settings of sites, tests of speed, stress."""
OPERATOR = "project_admin"


class OperatorCommands(FLComponent):
    """Refuses the hidden commands of `SCOPE`, for which FLARE asks no right, to all but a project admin."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begins when the server starts."""
        if event_type == EventType.SYSTEM_START and OPERATOR_COMMANDS.usable():
            cast("ServerEngine", fl_ctx.get_engine()).server.admin_server.cmd_reg.add_filter(OperatorsOnly())


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
