"""A site that comes back, or comes late, joins the jobs that are running."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.utils.job_launcher_utils import get_resource_manager_spec

from pt_peft.experiment.deployment import app_of
from pt_peft_flare.flare_internals import REJOIN
from pt_peft_flare.messages import SITES_CHANGED, printable
from pt_peft_flare.parent.watcher import Watcher

if TYPE_CHECKING:
    from nvflare.private.admin_defs import Message
    from nvflare.private.fed.server.server_engine import ServerEngine

ANSWER_S = 10.0
"""How long a site or the job's process has to answer."""
FIRST_PAUSE_S = 2.0
"""Pause after a first attempt that has failed. Each further one doubles it."""
LONGEST_PAUSE_S = 60.0


class Rejoin(Watcher):
    """Deploys and starts a running job at every connected site that belongs to it and does not run it.

    FLARE gives a job to the sites that are connected when it starts, and knows them by the token of their
    registration: a site that is restarted gets another one and is never asked again. A site that does not answer, or
    refuses, is asked again later, for as long as the job runs; until then it does not count as taking part.
    """

    def __init__(self, interval_s: float = 2.0) -> None:
        """Looks every `interval_s` seconds."""
        super().__init__(interval_s, REJOIN)
        self._failed: dict[tuple[str, str], _Failed] = {}
        """By job and token of the site."""

    def look(self, engine: "ServerEngine") -> None:
        """Lets absent sites join all running jobs."""
        running = dict(engine.job_runner.running_jobs)
        self._failed = {key: one for key, one in self._failed.items() if key[0] in running}
        for job_id, job in running.items():
            process = engine.run_processes.get(job_id)
            if process is None or job.run_aborted:
                continue
            participants: dict[str, Client] = process[RunProcessKey.PARTICIPANTS]
            for client in absent(job, participants, engine.get_clients()):
                self._try(engine, job, client, participants)

    def _try(self, engine: "ServerEngine", job: Job, client: Client, participants: dict[str, Client]) -> None:
        key = job.job_id, client.token
        failed = self._failed.get(key)
        if failed and time.monotonic() < failed.again_at:
            return
        with engine.new_context() as fl_ctx:
            fl_ctx.set_prop(FLContextKey.CURRENT_JOB_ID, job.job_id)
            try:
                _join(engine, job, client, participants, fl_ctx)
            except Exception as error:  # one site must not end the watch for all
                reason = printable(str(error))
                pause = min(2 * failed.pause_s, LONGEST_PAUSE_S) if failed else FIRST_PAUSE_S
                self._failed[key] = _Failed(reason, pause, time.monotonic() + pause)
                if not failed or failed.reason != reason:
                    self.log_warning(
                        fl_ctx,
                        f"{client.name} cannot join the running job {job.job_id} yet: {reason}",
                        fire_event=False,
                    )
            else:
                self._failed.pop(key, None)
                self.log_info(fl_ctx, f"{client.name} has joined the running job {job.job_id}", fire_event=False)


@dataclass(frozen=True)
class _Failed:
    """The last attempt to let a site join."""

    reason: str
    pause_s: float
    again_at: float
    """By the monotonic clock."""


def absent(job: Job, participants: Mapping[str, Client], connected: list[Client]) -> list[Client]:
    """The `connected` sites that `job` was meant for and that do not take part in it under their present token."""
    return [client for client in connected if client.token not in participants and app_of(job.meta, client.name)]


def _join(engine: "ServerEngine", job: Job, client: Client, participants: dict[str, Client], fl_ctx: FLContext) -> None:
    """Does what FLARE's job runner does with a site when a job starts, and undoes it if the site does not start.

    Raises:
        RuntimeError: if the site refuses, or does not answer.
    """
    app = app_of(job.meta, client.name)
    assert app is not None  # as `absent` has found the client
    if _runs_there(engine, job, client):  # it has started after it was given up
        _take_in(engine, job, client, participants, ExitStack())
        return
    message = engine.job_runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)  # pyright: ignore[reportPrivateUsage]  # flare_internals
    _answer(engine, client, message)
    resources = {client.name: get_resource_manager_spec(job.meta, client.name)}
    checked = engine.check_client_resources(job, resources, fl_ctx)
    free, reservation = checked.get(client.name, (False, "it does not answer"))
    if not free:
        raise RuntimeError(f"its resources are in use ({reservation})")
    with ExitStack() as undo:
        undo.callback(engine.cancel_client_resources, checked, resources, fl_ctx)
        _take_in(engine, job, client, participants, undo)
        dispatch = {client.name: DispatchInfo(app, resources[client.name], reservation)}
        replies = engine.start_client_job(job, dispatch, fl_ctx)
        if not replies:
            raise RuntimeError("it is not connected any more")
        for one in replies:
            _check_started(one.reply)
        undo.pop_all()


def _take_in(
    engine: "ServerEngine", job: Job, client: Client, participants: dict[str, Client], undo: ExitStack
) -> None:
    """Makes `client` one of the job's sites, in place of the same site under earlier tokens."""
    runner = engine.job_runner
    before = {token: one for token, one in participants.items() if one.name == client.name}

    def put_back() -> None:
        del participants[client.token]
        participants.update(before)
        engine.send_app_command(job.job_id, SITES_CHANGED, {}, ANSWER_S)

    for token in before:
        del participants[token]
    participants[client.token] = client
    undo.callback(put_back)
    # The site is told who takes part: the sites of the start, and itself.
    told = job.meta.get(JobMetaKey.JOB_CLIENTS, [])
    if client.name not in [one["name"] for one in told]:
        job.meta[JobMetaKey.JOB_CLIENTS] = [*told, client.to_dict()]
        undo.callback(job.meta.update, {JobMetaKey.JOB_CLIENTS: told})
    # Its process will ask for work at once, and the job's process must know the new token by then.
    engine.send_app_command(job.job_id, SITES_CHANGED, {}, ANSWER_S)
    with runner.lock:
        pending = runner._pending_client_outcomes.setdefault(job.job_id, set())  # pyright: ignore[reportPrivateUsage]  # flare_internals
        if client.name not in pending:
            pending.add(client.name)
            undo.callback(runner.resolve_client_outcome, job.job_id, client.name)


def _runs_there(engine: "ServerEngine", job: Job, client: Client) -> bool:
    """Whether the site runs the job. Raises RuntimeError if it does not answer."""
    from nvflare.private.admin_defs import Message
    from nvflare.private.defs import ClientStatusKey, TrainingTopic

    status = json.loads(_answer(engine, client, Message(topic=TrainingTopic.CHECK_STATUS, body="")))
    return job.job_id in (one[ClientStatusKey.JOB_ID] for one in status[ClientStatusKey.RUNNING_JOBS])


def _answer(engine: "ServerEngine", client: Client, message: "Message") -> str:
    """What the site answers. Raises RuntimeError if it refuses, or does not answer."""
    from nvflare.private.admin_defs import MsgHeader, ReturnCode

    admin = engine.server.admin_server
    assert admin  # as jobs run
    reply = admin.send_requests_and_get_reply_dict({client.token: message}, timeout_secs=ANSWER_S)[client.token]
    if reply is None:
        raise RuntimeError("it does not answer")
    if reply.get_header(MsgHeader.RETURN_CODE, ReturnCode.OK) != ReturnCode.OK:
        raise RuntimeError(reply.body)
    return reply.body


def _check_started(reply: "Message | None") -> None:
    """Raises RuntimeError unless the site has said that it starts the job, for which FLARE has several sentences."""
    from nvflare.private.defs import ERROR_MSG_PREFIX

    if reply is None:
        raise RuntimeError("it does not answer")
    if str(reply.body).startswith(ERROR_MSG_PREFIX):
        raise RuntimeError(reply.body)
