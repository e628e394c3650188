"""What runs, how far it is, and who is there."""

import argparse
import json
import time

from nvflare.fuel.flare_api.api_spec import AuthorizationError, InternalError, JobNotRunning, NoReply
from nvflare.fuel.flare_api.flare_api import Session

from pt_peft_flare.admin_session import add_kit, connected
from pt_peft_flare.messages import STATUS

RUNNING = "RUNNING"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_kit(parser)
    parser.add_argument("job", nargs="?", help="a job's id; without it, all that run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Prints the connected sites and the jobs. Raises UserError if the server refuses."""
    with connected(options.kit) as session:
        found = status(session, options.job)
    print(json.dumps(found, indent=2) if options.json else table(found))


def status(session: Session, job: str | None) -> dict:
    """``sites``: seconds since each connected one was last seen, by the server's clock where a job runs to tell it; ``jobs``:
    by id its ``status`` and, while it runs, its `progress`.
    """
    clients = session.get_system_info().client_info
    ids = [job] if job else [one["job_id"] for one in session.list_jobs() if one["status"] == RUNNING]
    jobs = {one: _job(session, one) for one in ids}
    now = max((one.pop("time") for one in jobs.values() if "time" in one), default=time.time())
    return {
        "sites": {one.name: {"last_seen_s": max(0.0, round(now - one.last_connect_time, 1))} for one in clients},
        "jobs": jobs,
    }


def _job(session: Session, job: str) -> dict:
    state = session.get_job_status(job)
    if state != RUNNING:
        return {"status": state}
    try:
        return {"status": state, **session.do_app_command(job, STATUS, {})}
    except (JobNotRunning, NoReply, InternalError):  # its process is not ready yet, or about to end
        return {"status": session.get_job_status(job)}
    except AuthorizationError:
        return {"status": state, "refused": "only who may stop it is told more"}


def table(found: dict) -> str:
    """`found` for a person."""
    lines, working = [], set()
    seen = {name: f"{site['last_seen_s']:.0f} s ago" for name, site in found["sites"].items()}
    for job, one in found["jobs"].items():
        lines.append(f"{job}  {one['status']}  {_how_far(one)}")
        for name, site in one.get("sites", {}).items():
            sent = f"{site['bytes_in'] / 1000:.1f} kB in, {site['bytes_out'] / 1000:.1f} kB out"
            lines.append(
                f"  {name:20} {site['rounds']} round(s), {sent}, seen {seen.get(name, 'long ago')}: {site['now']}"
            )
            working.add(name)
    if not found["jobs"]:
        lines.append("no job is running")
    lines += [f"  {name:20} connected, seen {when}" for name, when in seen.items() if name not in working]
    return "\n".join(lines)


def _how_far(job: dict) -> str:
    if job["status"] != RUNNING:
        state = str(job["status"])
        if state == "FINISHED:COMPLETED":
            return "its metrics and adapter: nvflare job download"
        return (
            "why: nvflare job download (its metrics.json, log.txt), nvflare job meta"
            if state.startswith("FINISHED")
            else ""
        )
    if "refused" in job:
        return job["refused"]
    if "rounds" not in job:
        return "starts up or ends: no word from its process"
    left = job["seconds_left"]
    rest = "" if left is None else f", about {left:.0f} s left"
    return f"{job['experiment']}: {job['finished_rounds']} of {job['rounds']} rounds{rest}"
