"""Whether a job has succeeded is the server's word, not that of a site that has gone or failed."""

import logging

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey

from pt_peft_flare.parent.watcher import Watcher

log = logging.getLogger(__name__)


class Outcomes(Watcher):
    """After a job FLARE waits for every site's own word of how it ended, and lists a job that the server has finished as
    ``FINISHED:ABNORMAL`` if a site died or was shut out meanwhile. The quorum has decided about such sites: their word is not
    waited for. And FLARE ends a job for all sites when one reports that its process failed: here that costs this site its part
    in the job, as long as enough others are left.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        super().__init__(interval_s)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.SYSTEM_START:
            server = fl_ctx.get_engine().server
            server.cell.register_request_cb(
                channel=CellChannel.SERVER_MAIN,
                topic=CellChannelTopic.REPORT_JOB_FAILURE,
                cb=lambda request: server.process_job_failure(of_one_site(server, request)),
            )

    def look(self, engine) -> None:
        for job_id in list(engine.job_runner.running_jobs):
            resolve(engine, job_id)


def resolve(engine, job_id: str) -> None:
    """Takes the word of the sites that are not connected, or once the server's process has ended well of all, as given."""
    runner = engine.job_runner
    failed = job_id in engine.exception_run_processes
    ended = job_id not in engine.run_processes and not failed
    connected = {client.name for client in engine.get_clients()}
    with runner.lock:
        pending = set(runner._pending_client_outcomes.get(job_id, ()))
    for site in pending if ended else pending - connected:
        runner.resolve_client_outcome(job_id, site)


def of_one_site(server, request: Message) -> Message:
    """A site's report that its part of a job failed, such that it ends the job only if fewer than ``min_clients`` are left."""
    payload = request.payload if isinstance(request.payload, dict) else {}
    job_id, runner = payload.get(JobFailureMsgKey.JOB_ID), server.engine.job_runner
    site = server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
    job = runner.running_jobs.get(job_id)
    if job is None or site is None:
        return request
    with runner.lock:
        left = set(runner._pending_client_outcomes.get(job_id, ())) - {site.name}
    if len(left) >= job.min_sites:
        log.warning(
            "job %s: %s has failed (%s) and is out of it", job_id, site.name, payload.get(JobFailureMsgKey.CODE)
        )
        payload[JobFailureMsgKey.CODE] = JobReturnCode.UNKNOWN
    return request
