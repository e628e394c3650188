"""Whether a job has succeeded is the server's word, not that of a site that has gone."""

from pt_peft_flare.parent.watcher import Watcher


class Outcomes(Watcher):
    """After a job FLARE waits for every site's own word of how it ended, and lists a job that the server has finished as
    ``FINISHED:ABNORMAL`` if a site died or was shut out meanwhile. The quorum has decided about such sites: their word is not
    waited for.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        super().__init__(interval_s)

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
