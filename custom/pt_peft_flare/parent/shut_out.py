"""A site that an admin shuts out takes no further part in the jobs that are running, and everybody is told."""

from typing import TYPE_CHECKING

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import AdminCommandNames, RunProcessKey
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.server.reg import CommandFilter

from pt_peft_flare.flare_internals import SHUT_OUT
from pt_peft_flare.messages import SHUT_OUT_SITES, SITES_SHUT_OUT
from pt_peft_flare.parent.watcher import Watcher

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine

ANSWER_S = 5.0
"""How long a job's process has to answer."""


class ShutOut(Watcher):
    """Tells the processes of running jobs, and people who ask for the server's status, which sites are disabled.

    FLARE's ``disable-client`` ends the site's registration alone: its job processes go on, their results count, and if
    they die the job waits for them.
    """

    def __init__(self, interval_s: float = 2.0) -> None:
        """Looks every `interval_s` seconds."""
        super().__init__(interval_s, SHUT_OUT)
        self._listed = False

    def look(self, engine: "ServerEngine") -> None:
        """Takes disabled sites out of all running jobs."""
        if not self._listed and (admin := engine.server.admin_server):  # as soon as it takes commands
            admin.cmd_reg.add_filter(ListOfDisabled(engine))
            self._listed = True
        for job_id, process in list(engine.run_processes.items()):
            participants: dict[str, Client] = process[RunProcessKey.PARTICIPANTS]
            is_disabled = engine.server.client_manager.is_client_disabled
            out = [one for one in list(participants.values()) if is_disabled(one.name)]
            if out and _told(engine, job_id, sorted(one.name for one in out)):
                for one in out:
                    participants.pop(one.token, None)


class ListOfDisabled(CommandFilter):
    """Adds the disabled sites to the server's status, from which FLARE lets them vanish."""

    def __init__(self, engine: "ServerEngine") -> None:
        """Takes the server's engine."""
        self._engine = engine

    def pre_command(self, conn: Connection, args: list[str]) -> bool:
        """Lets each command run."""
        return True

    def post_command(self, conn: Connection, args: list[str]) -> bool:
        """Runs after each command of a person."""
        if args[0].rpartition(".")[2] == AdminCommandNames.CHECK_STATUS:
            sites = sorted(self._engine.server.client_manager.disabled_clients)
            conn.append_string(f"Shut out: {', '.join(sites) or 'none'}", meta={SHUT_OUT_SITES: sites})
        return True


def _told(engine: "ServerEngine", job_id: str, sites: list[str]) -> bool:
    """Whether the job's process, which may not be ready yet, has heard of `sites`."""
    answer = engine.send_app_command(job_id, SITES_SHUT_OUT, {"sites": sites}, ANSWER_S)
    return isinstance(answer, Shareable) and answer.get_return_code() == ReturnCode.OK
