"""Whether a job has succeeded is the server's word, not that of a site that has gone."""

import threading

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext


class Outcomes(FLComponent):
    """Runs in the server's parent process. After a job FLARE waits for every site's own word of how it ended, and lists a job
    that the server has finished as ``FINISHED:ABNORMAL`` if a site died or was shut out meanwhile. The quorum has decided
    about such sites: their word is not waited for.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        """Args:
        interval_s: seconds between looks at what has ended.
        """
        super().__init__()
        self._interval_s = interval_s
        self._stopped = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_START:
            threading.Thread(target=self._watch, args=[fl_ctx.get_engine()], name="outcomes", daemon=True).start()
        elif event_type == EventType.SYSTEM_END:
            self._stopped.set()

    def _watch(self, engine) -> None:
        while not self._stopped.wait(self._interval_s):
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
