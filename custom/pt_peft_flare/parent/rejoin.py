"""A site that comes back, or comes late, joins the jobs that are running."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import ALL_SITES, Job
from nvflare.apis.job_scheduler_spec import DispatchInfo

from pt_peft_flare.flare_internals import REJOIN
from pt_peft_flare.messages import SITES_CHANGED
from pt_peft_flare.parent.watcher import Watcher

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine

ANSWER_S = 10.0
"""How long a site or the job's process has to answer."""


class Rejoin(Watcher):
    """Deploys and starts a running job at every connected site that belongs to it and does not run it.

    FLARE gives a job to the sites that are connected when it starts, and knows them by the token of their
    registration: a site that is restarted gets another one and is never asked again.
    """

    def __init__(self, interval_s: float = 2.0) -> None:
        """Looks every `interval_s` seconds."""
        super().__init__(interval_s, REJOIN)
        self._refused: set[tuple[str, str]] = set()

    def look(self, engine: "ServerEngine") -> None:
        """Lets absent sites join all running jobs."""
        for job_id, job in list(engine.job_runner.running_jobs.items()):
            process = engine.run_processes.get(job_id)
            if process is None or job.run_aborted:
                continue
            participants: dict[str, Client] = process[RunProcessKey.PARTICIPANTS]
            for client in absent(job, participants, engine.get_clients()):
                self._try(engine, job, client, participants)

    def _try(self, engine: "ServerEngine", job: Job, client: Client, participants: dict[str, Client]) -> None:
        if (job.job_id, client.token) in self._refused:
            return
        with engine.new_context() as fl_ctx:
            fl_ctx.set_prop(FLContextKey.CURRENT_JOB_ID, job.job_id)
            try:
                _join(engine, job, client, participants, fl_ctx)
            except Exception as error:  # one site must not end the watch for all
                self._refused.add((job.job_id, client.token))
                self.log_error(
                    fl_ctx, f"{client.name} cannot join the running job {job.job_id}: {error}", fire_event=False
                )
            else:
                self.log_info(fl_ctx, f"{client.name} has joined the running job {job.job_id}", fire_event=False)


def absent(job: Job, participants: Mapping[str, Client], connected: list[Client]) -> list[Client]:
    """The `connected` sites that `job` was meant for and that do not take part in it under their present token."""
    return [client for client in connected if client.token not in participants and _app_of(job, client.name)]


def _app_of(job: Job, site: str) -> str | None:
    """The name of the job's app that is meant for `site`."""
    from nvflare.private.fed.utils.fed_utils import extract_participants

    for app, participants in job.get_deployment().items():
        names = extract_participants(participants)
        if site in names or ALL_SITES in [name.upper() for name in names]:
            return app
    return None


def _join(engine: "ServerEngine", job: Job, client: Client, participants: dict[str, Client], fl_ctx: FLContext) -> None:
    """Does what FLARE's job runner does with a site when a job starts. Raises RuntimeError if the site refuses."""
    from nvflare.private.admin_defs import MsgHeader, ReturnCode

    runner, admin = engine.job_runner, engine.server.admin_server
    app = _app_of(job, client.name)
    assert app is not None  # as `absent` has found the client
    resources = job.get_resource_requirements().get(client.name, {})
    content = job.get_application(app, fl_ctx)
    message = runner._make_deploy_message(job, content, app, fl_ctx)  # pyright: ignore[reportPrivateUsage]  # flare_internals
    reply = admin.send_requests_and_get_reply_dict({client.token: message}, timeout_secs=ANSWER_S)[client.token]
    if reply is None or reply.get_header(MsgHeader.RETURN_CODE, ReturnCode.OK) != ReturnCode.OK:
        raise RuntimeError(reply.body if reply else "it does not answer")
    free, reservation = engine.check_client_resources(job, {client.name: resources}, fl_ctx)[client.name]
    if not free:
        raise RuntimeError(f"its resources are in use ({reservation})")
    for token in [token for token, one in participants.items() if one.name == client.name]:
        del participants[token]
    participants[client.token] = client
    # Its process will ask for work at once, and the job's process must know the new token by then.
    engine.send_app_command(job.job_id, SITES_CHANGED, {}, ANSWER_S)
    with runner.lock:
        pending = runner._pending_client_outcomes  # pyright: ignore[reportPrivateUsage]  # flare_internals
        pending.setdefault(job.job_id, set()).add(client.name)
    dispatch = {client.name: DispatchInfo(app, resources, reservation)}
    for answer in engine.start_client_job(job, dispatch, fl_ctx):
        if answer.reply is None or answer.reply.body != "OK":
            raise RuntimeError(answer.reply.body if answer.reply else "it does not answer")
