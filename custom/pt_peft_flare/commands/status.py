"""Shows the connected sites and the jobs, with the progress of those that run.

Example:
    pt-peft status --kit lead@consortium.example --json
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any, TypedDict, cast

from pt_peft.errors import one_line
from pt_peft_flare.admin_session import add_kit, connected

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

    from pt_peft_flare.progress import Progress, SiteProgress

RUNNING = "RUNNING"
CHECK_SERVER = "check_status server"
"""FLARE's command; `pt_peft_flare.parent.shut_out` adds to its answer."""


class LastSeen(TypedDict):
    """A connected site."""

    last_seen_s: float
    """Seconds since its last sign of life, by the server's clock where a running job tells it."""


class JobState(TypedDict, total=False):
    """A job; most only while it runs. Those fields are those of `pt_peft_flare.progress.Progress`."""

    status: str | None
    """FLARE's word."""
    reason: str
    """Why it failed."""
    sites_refused: dict[str, str]
    """Of a job that has ended, the sites (or ``server``) that did not take it when it started, with their reasons."""
    refused: str
    """Why the job's process does not answer this person."""
    experiment: str
    finished_rounds: int
    continues: str | None
    continued_rounds: int
    rounds: int
    finished_stages: int
    stages: int
    seconds_left: float | None
    sites: dict[str, SiteProgress]


class Status(TypedDict):
    """What is known of a federation."""

    sites: dict[str, LastSeen]
    """Connected sites, by name."""
    shut_out: list[str]
    """Sites that an admin has shut out."""
    jobs: dict[str, JobState]
    """Jobs, by id."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_kit(parser)
    parser.add_argument("job", nargs="?", help="id of a job (default: all running jobs)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints the connected sites and the jobs. Raises UserError if the server refuses."""
    with connected(options.kit) as session:
        found = status(session, options.job)
    print(json.dumps(found, indent=2) if options.json else table(found))


def status(session: Session, job: str | None) -> Status:
    """Asks for the connected sites, and for `job` or all jobs that run."""
    from pt_peft_flare.messages import SHUT_OUT_SITES

    clients = session.get_system_info().client_info
    shut_out = session.do_command(CHECK_SERVER).get("meta", {}).get(SHUT_OUT_SITES, [])
    ids = [job] if job else [one["job_id"] for one in session.list_jobs() if one["status"] == RUNNING]
    answers = {one: _job(session, one) for one in ids}
    now = max((one.pop("time") for one in answers.values() if "time" in one), default=time.time())
    return {
        "sites": {one.name: {"last_seen_s": max(0.0, round(now - one.last_connect_time, 1))} for one in clients},
        "shut_out": shut_out,
        "jobs": cast("dict[str, JobState]", answers),
    }


def _job(session: Session, job: str) -> dict[str, Any]:
    """The fields of `JobState`, and the server's ``time`` if it tells it."""
    from nvflare.fuel.flare_api.api_spec import AuthorizationError, InternalError, JobNotRunning, NoReply

    from pt_peft_flare.messages import STATUS

    state = session.get_job_status(job)
    if state != RUNNING:
        return {"status": state, **(_why(session, job) if str(state).startswith("FINISHED") else {})}
    try:
        return {"status": state, **session.do_app_command(job, STATUS, {})}
    except (JobNotRunning, NoReply, InternalError):  # its process is not ready yet, or about to end
        return {"status": session.get_job_status(job)}
    except AuthorizationError:
        return {"status": state, "refused": "only people who may stop it may see more"}


def _why(session: Session, job: str) -> dict[str, Any]:
    """What the metadata of a job that has ended says of failures."""
    from nvflare.apis.job_def import JobMetaKey

    from pt_peft_flare.parent.job_manager import REASON
    from pt_peft_flare.parent.refusals import refusals

    meta = session.get_job_meta(job)
    refused = refusals(meta.get(JobMetaKey.JOB_DEPLOY_DETAIL.value) or [])
    reason = meta.get(REASON)
    return ({"reason": reason} if reason else {}) | ({"sites_refused": refused} if refused else {})


def table(found: Status) -> str:
    """`found` for a person."""
    lines: list[str] = []
    working: set[str] = set()
    seen = {name: f"{site['last_seen_s']:.0f} s ago" for name, site in found["sites"].items()}
    for job, one in found["jobs"].items():
        lines.append(f"{job}  {one.get('status')}  {_how_far(one)}")
        lines += [f"  {name:20} did not take the job: {why}" for name, why in one.get("sites_refused", {}).items()]
        for name, site in one.get("sites", {}).items():
            sent = f"{site['bytes_in'] / 1000:.1f} kB in, {site['bytes_out'] / 1000:.1f} kB out"
            precision = site.get("precision")  # a server of an earlier version does not tell
            lines.append(
                f"  {name:20} {site['rounds']} round(s), {sent}, version {site['version'] or 'not known yet'}, "
                f"{precision + ', ' if precision else ''}"
                f"seen {seen.get(name, 'long ago')}: {site['now']}"
            )
            working.add(name)
    if not found["jobs"]:
        lines.append("no job is running")
    lines += [f"  {name:20} connected, seen {when}" for name, when in seen.items() if name not in working]
    lines += [f"  {name:20} shut out by an admin, until 'nvflare system enable-client'" for name in found["shut_out"]]
    return "\n".join(map(one_line, lines))


def _how_far(job: JobState) -> str:
    state = str(job.get("status"))
    if state == "FINISHED:COMPLETED":
        return "its results: nvflare job download"
    if state.startswith("FINISHED"):
        return job.get("reason", "why: nvflare job download (its metrics.json, log.txt)")
    if state != RUNNING:
        return ""
    if "refused" in job:
        return job["refused"]
    if "rounds" not in job:
        return "starts up or ends: no word from its process"
    known = cast("Progress", job)  # whose fields come together
    left = known["seconds_left"]
    rest = "" if left is None else f", about {left:.0f} s left"
    before = known["continued_rounds"]
    earlier = f" ({before} of them in job {known['continues']}, which it continues)" if before else ""
    statistics = f", {known['finished_stages']} of {known['stages']} stages of statistics" if known["stages"] else ""
    return f"{known['experiment']}: {known['finished_rounds']} of {known['rounds']} rounds{earlier}{statistics}{rest}"
