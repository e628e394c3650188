"""The server says whether a job has succeeded, not a site that has gone or failed."""

import logging
from typing import TYPE_CHECKING, Any, cast

from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.fuel.f3.message import Message

from pt_peft_flare.flare_internals import OUTCOMES
from pt_peft_flare.parent.watcher import Watcher

if TYPE_CHECKING:
    from nvflare.private.fed.server.fed_server import FederatedServer
    from nvflare.private.fed.server.server_engine import ServerEngine

log = logging.getLogger(__name__)


class Outcomes(Watcher):
    """Lets the quorum decide about sites that go or fail.

    After a job FLARE waits for each site's own report of how it ended, and lists a job that the server has finished
    as ``FINISHED:ABNORMAL`` if a site died or was shut out meanwhile: here their reports are not waited for. And FLARE
    ends a job for all sites when one reports that its process failed: here that costs this site its part in the job,
    as long as enough others are left.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        """Looks every `interval_s` seconds."""
        super().__init__(interval_s, OUTCOMES)

    def begin(self, engine: "ServerEngine") -> None:
        """Starts to look, and takes sites' reports of failures in FLARE's place."""
        from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic

        super().begin(engine)
        server = engine.server
        server.cell.register_request_cb(
            channel=CellChannel.SERVER_MAIN,
            topic=CellChannelTopic.REPORT_JOB_FAILURE,
            cb=lambda request: server.process_job_failure(of_one_site(server, request)),
        )

    def look(self, engine: "ServerEngine") -> None:
        """Resolves the outcomes of sites in all running jobs."""
        for job_id in list(engine.job_runner.running_jobs):
            resolve(engine, job_id)


def resolve(engine: "ServerEngine", job_id: str) -> None:
    """Stops waiting for the reports of sites that are not connected; of all, if the server's process has ended well."""
    runner = engine.job_runner
    failed = job_id in engine.exception_run_processes
    ended = job_id not in engine.run_processes and not failed
    connected = {client.name for client in engine.get_clients()}
    pending = _pending(engine, job_id)
    for site in pending if ended else pending - connected:
        runner.resolve_client_outcome(job_id, site)


def of_one_site(server: "FederatedServer", request: Message) -> Message:
    """Changes a site's report of a failure, so that the job ends only if fewer than ``min_clients`` are left.

    Sites report a good end too, which stays as it is.
    """
    from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey

    payload = cast("dict[str, Any] | None", request.payload)
    if not isinstance(payload, dict) or payload.get(JobFailureMsgKey.CODE) == JobReturnCode.SUCCESS:
        return request
    job_id = payload.get(JobFailureMsgKey.JOB_ID)
    site = server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
    if not isinstance(job_id, str) or site is None:
        return request
    job = server.engine.job_runner.running_jobs.get(job_id)
    if job is None:
        return request
    left = _pending(server.engine, job_id) - {site.name}
    if len(left) >= job.min_sites:
        log.warning(
            "job %s: %s has failed (%s) and is out of it", job_id, site.name, payload.get(JobFailureMsgKey.CODE)
        )
        payload[JobFailureMsgKey.CODE] = JobReturnCode.UNKNOWN
    return request


def _pending(engine: "ServerEngine", job_id: str) -> set[str]:
    """The sites whose report of how the job ended has not come yet."""
    runner = engine.job_runner
    with runner.lock:
        return set(runner._pending_client_outcomes.get(job_id, ()))  # pyright: ignore[reportPrivateUsage]  # flare_internals
