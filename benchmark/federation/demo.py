"""Runs a federation of three hospitals on this machine, each in its own processes, over mTLS."""

import csv
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing
from math import ceil
from pathlib import Path

import psutil
from nvflare.fuel.flare_api.flare_api import Session

from benchmark.federation.provisioned import LEAD, Federation
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.sections import Partition
from pt_peft.experiment.site import Site
from pt_peft.presets import demo, ham10000
from pt_peft_flare.commands.status import status, table
from pt_peft_flare.job_folder import write_job

HOSPITALS = ("rosendahl", "vidir_modern", "vidir_molemax")
"""Three of HAM10000's acquisition sites; each hospital has a table of its own images alone."""
IMAGES = 384
"""The most images that a hospital lists in its table, so that the demo takes minutes."""
EMBEDDED_HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")
INTERVAL_S = 10
"""Seconds between looks at the job's progress."""


def demonstrate(folder: Path, port: int, rounds: int, embedded: bool) -> None:
    """Provisions, starts and ends a federation that runs one job, and prints each step.

    Args:
        folder: made here; takes kits, logs and results.
        port: of the server, on the loopback.
        rounds: of the job.
        embedded: whether the hospitals have the embedded images instead of HAM10000's.

    Raises:
        UserError: if a step fails.
    """
    if folder.exists():
        raise UserError(f"--out: {folder} exists already{_running_in(folder.resolve())}.")
    folder = folder.resolve()
    if not embedded:
        ham10000()  # raises before anything is made if the data are missing
    folder.mkdir(parents=True)
    experiment, sites = _embedded() if embedded else _real(folder)
    federation_fields = experiment.federation.model_copy(update={"rounds": rounds, "sites": (), "min_sites": 2})
    experiment = experiment.model_copy(update={"federation": federation_fields})
    job = folder / "jobs" / experiment.name
    write_job(experiment, job, installed=True)
    with closing(Federation(folder, sites, port)) as federation:
        print(f"kits of server, {', '.join(sites)} and people in {federation.kit('server').parent}")
        for name in sites:
            _check_site(federation, name, job)
        federation.start()
        session = federation.session()
        try:
            federation.wait_for(session)
            results = _follow(session, str(job), folder)
        finally:
            session.close()
    print(f"final adapter  {results / 'adapter.safetensors'}")
    print(f"metrics        {results / 'metrics.json'}")
    print(f"curves         {shlex.join(('tensorboard', '--logdir', str(results / 'tb_events')))}")
    for name in sites:
        print(f"ledger of {name:13} {federation.kit(name) / results.parent.name / 'egress.jsonl'}")


def _running_in(folder: Path) -> str:
    """Says how to end a federation that an earlier, killed command has left in `folder`; empty if none runs."""
    processes = [
        str(process.pid)
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder / "pt_peft") in argument for argument in process.info["cmdline"] or ())
    ]
    return f", and a federation runs in it: 'kill -9 {' '.join(processes)}' ends it" if processes else ""


def _real(folder: Path) -> tuple[Experiment, dict[str, Site]]:
    """Gives each hospital the table of its own images."""
    experiment, site = ham10000()
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with open(str(site.data.table), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["site"]].append(row)
    sites: dict[str, Site] = {}
    for name in HOSPITALS:
        table_file = folder / f"{name}.csv"
        with open(table_file, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[name][0]))
            writer.writeheader()
            writer.writerows(rows[name][:: ceil(len(rows[name]) / IMAGES)])
        own = site.data.model_copy(update={"table": str(table_file), "pooled": False})
        sites[name] = site.model_copy(update={"data": own, "threads": 1, "limits": Limits()})
    return experiment.model_copy(update={"partition": Partition()}), sites


def _embedded() -> tuple[Experiment, dict[str, Site]]:
    return demo("lora_vpt")[0], dict.fromkeys(EMBEDDED_HOSPITALS, Site(threads=1))


def _check_site(federation: Federation, name: str, job: Path) -> None:
    site_file = federation.kit(name) / "local" / "site.json"
    command = ["-m", "pt_peft", "check-site", str(site_file), str(job), "--name", name]
    print(f"\n{name}: {shlex.join(('python', *command))}", flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        raise UserError(f"{name}: check-site has found a mistake that must be mended first.")


def _follow(session: Session, job: str, folder: Path) -> Path:
    """Submits the job, waits for its end and prints its progress.

    Returns:
        The folder of its results.

    Raises:
        UserError: if the job does not finish.
    """
    job_id = session.submit_job(job)
    print(f"\n{LEAD} has submitted job {job_id}")
    shown = None
    while not (state := session.get_job_status(job_id)) or not state.startswith("FINISHED"):
        if state == "RUNNING" and (now := _progress(session, job_id)) != shown:
            shown = now
            print(now)
        time.sleep(INTERVAL_S)
    results = Path(session.download_job_result(job_id, str(folder))) / "workspace"
    if state != "FINISHED:COMPLETED":
        raise UserError(f"job {job_id} ended as {state}; see {results}.")
    return results


def _progress(session: Session, job_id: str) -> str:
    try:
        return table(status(session, job_id))
    except Exception as error:  # the job may have ended in between
        return f"its progress is unknown ({error})"
