"""Faults in a real federation: provisioned, mTLS, a process for every part."""

import json
import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
from lead import wait
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from benchmark.federation.provisioned import ADMIN
from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import assert_equal, changed
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft.worker.local_adapter import LOCAL_ADAPTER
from pt_peft_flare.commands.status import status

pytestmark = pytest.mark.slow


def test_a_killed_worker_costs_its_site_the_round(lead, experiment):
    run = lead.submit(changed(experiment, name="worker"))
    run.wait_for_round(1)
    run.wait_for_training("hospital-2").kill()
    record = run.finish()
    assert record["status"] == "finished"
    missed = [one["round"] for one in record["rounds"] if "hospital-2" in one["left_out"]]
    assert len(missed) == 1
    assert "hospital-2" in record["rounds"][-1]["sites"]
    assert not record["final"]["left_out"]


def test_a_killed_job_process_is_back_for_the_same_round(lead, experiment):
    run = lead.submit(changed(experiment, name="process"))
    run.wait_for_training("hospital-2")
    run.processes("hospital-2")[0].kill()
    record = run.finish()
    assert record["status"] == "finished"
    assert all(len(one["sites"]) == 3 for one in record["rounds"])
    assert "started again" in (lead.federation.kit("hospital-2") / "log.txt").read_text()


def test_a_killed_site_joins_again(lead, experiment):
    run = lead.submit(
        changed(experiment, name="site", federation={"rounds": 5, "round_timeout_s": 60, "site_timeout_s": 50})
    )
    run.wait_for_training("hospital-3")
    lead.federation.kill("hospital-3")
    run.wait_for_round(1)
    assert run.record()["rounds"][0]["left_out"].keys() == {"hospital-3"}
    lead.federation.start("hospital-3")
    record = run.finish()
    assert record["status"] == "finished"
    assert run.state == "FINISHED:COMPLETED"
    assert "hospital-3" in record["rounds"][-1]["sites"]
    assert not record["final"]["left_out"]


@pytest.mark.parametrize("head", ["exchanged", "local"])
def test_a_killed_server_resumes(head, lead, experiment):
    """With a local head, each site's own goes on too."""
    method = {**experiment.method.model_dump(), "head": head}
    experiment = changed(experiment, name=f"server_{head}", federation={"rounds": 4}, method=method)
    run = lead.submit(experiment)
    run.wait_for_round(2)
    lead.federation.kill("server")
    restart_server(lead)
    assert lead.session.get_job_status(run.job) == "FINISHED:ABNORMAL"
    again = lead.clone(run)
    record = again.finish()
    assert record["status"] == "finished"
    assert record["continues"] == run.job
    assert [one["round"] for one in record["rounds"]] == [0, 1, 2, 3]
    sites = load_sites(experiment, Site(), list(lead.federation.sites))
    oracle = federate(make_trainer(experiment, Site()), sites)
    assert_equal(again.results / "adapter.safetensors", oracle.tensors)
    for name, kept in oracle.kept.items():
        assert bool(kept) == (head == "local")
        own = lead.federation.kit(name) / again.job / LOCAL_ADAPTER
        assert_equal(own, {**load_adapter(own)[0], **kept})
    left = {path.stem for path in (lead.federation.kit("server") / "checkpoints").iterdir()}
    assert not left & {run.job, again.job}

    # The curves in the download are those of both jobs, for all sites and the federation side by side.
    curves = EventMultiplexer().AddRunsFromDirectory(str(again.results)).Reload()
    names = [f"tb_events/{name}" for name in ("global", *lead.federation.sites)]
    assert sorted(curves.Runs()) == sorted(names)
    for name in names:
        assert [point.step for point in curves.Scalars(name, "val/loss")] == [0, 1, 2, 3, 4]
        assert [point.step for point in curves.Scalars(name, "time/round_s")] == [1, 2, 3, 4]


def test_a_killed_server_asks_for_no_sums_again(lead, experiment):
    head = {"start": "ridge", "finish": "ridge"}
    experiment = changed(experiment, name="server_statistics", head=head, federation={"min_sites": 3})
    run = lead.submit(experiment)
    run.wait_for_round(1)
    lead.federation.kill("server")
    restart_server(lead)
    again = lead.clone(run)
    record = again.finish()
    assert record["status"] == "finished"
    assert [one["round"] for one in record["rounds"]] == [0, 1, 2]
    asked = [(one["when"], one["stage"], one["job"]) for one in record["statistics"]]
    assert asked == [
        (when, stage, job)
        for when, job in (("start", run.job), ("finish", again.job))
        for stage in ("counts", "moments", "choice")
    ]
    oracle = federate(make_trainer(experiment, Site()), load_sites(experiment, Site(), list(lead.federation.sites)))
    assert_equal(again.results / "adapter.safetensors", oracle.tensors)


def test_a_worker_that_hangs_and_one_that_is_ten_times_slower(lead, experiment):
    run = lead.submit(changed(experiment, name="hang", federation={"site_timeout_s": 90, "round_timeout_s": 120}))
    worker = run.wait_for_training("hospital-1")
    worker.suspend()
    run.wait_for_round(1)
    wait(lambda: not worker.is_running(), 10, "the end of the worker")
    assert run.record()["rounds"][0]["left_out"].keys() == {"hospital-1"}
    slow = run.wait_for_training("hospital-1")
    while len(run.record()["rounds"]) < 2:
        with suppress(psutil.NoSuchProcess):
            slow.suspend()
            time.sleep(0.9)
            slow.resume()
        time.sleep(0.1)
    record = run.finish()
    assert record["status"] == "finished"
    assert not record["rounds"][1]["left_out"]
    assert not record["final"]["left_out"]


def test_a_process_that_hangs_costs_its_site_the_round(lead, experiment):
    run = lead.submit(
        changed(experiment, name="stopped", federation={"site_timeout_s": 50, "round_timeout_s": 60, "rounds": 4})
    )
    run.wait_for_training("hospital-1")
    job = run.processes("hospital-1")[0]
    job.suspend()
    run.wait_for_round(1)
    assert run.record()["rounds"][0]["left_out"] == {
        "hospital-1": {"code": "no_answer", "seconds": 60, "sentence": "no answer within 60 s"}
    }
    job.resume()
    record = run.finish()
    assert record["status"] == "finished"
    assert "hospital-1" in record["rounds"][-1]["sites"]


def test_a_link_that_drops_for_thirty_seconds(lead, experiment):
    run = lead.submit(changed(experiment, name="link"))
    run.wait_for_training("hospital-2")
    lead.links["hospital-2"].cut()
    time.sleep(30)
    lead.links["hospital-2"].mend()
    record = run.finish()
    assert record["status"] == "finished"
    assert "hospital-2" in record["rounds"][-1]["sites"]
    assert not record["final"]["left_out"]


@pytest.mark.parametrize("moment", ["got task assignment", "start to send task result"])
def test_a_link_that_drops_for_a_minute_loses_nothing(lead, experiment, moment):
    """Neither the task nor the result, which is sent again and not trained for again."""
    run = lead.submit(changed(experiment, name="minute", federation={"round_timeout_s": 600}))
    run.wait_for_round(1)
    log = lead.federation.kit("hospital-2") / run.job / "log.txt"
    before = len(log.read_text())
    wait(lambda: moment in log.read_text()[before:], 60, moment, look_s=0.005)
    lead.links["hospital-2"].cut()
    time.sleep(60)
    lead.links["hospital-2"].mend()
    record = run.finish()
    assert record["status"] == "finished"
    assert all(len(one["sites"]) == 3 for one in record["rounds"])
    assert max(one["seconds"] for one in record["rounds"]) < 60 + 45
    ledger = (lead.federation.kit("hospital-2") / run.job / "egress.jsonl").read_text().splitlines()
    assert [(one["task"], one["round"]) for one in map(json.loads, ledger)] == [
        ("open", None), ("counted", None), ("train", 0), ("train", 1), ("train", 2), ("validate", 3),
    ]  # fmt: skip


def test_a_dead_site_costs_its_silence_once(lead, experiment):
    run = lead.submit(changed(experiment, name="dead", federation={"rounds": 4, "silence_s": 40}))
    run.wait_for_training("hospital-3")
    lead.federation.kill("hospital-3")
    try:
        now = wait(lambda: "silent for" in (now := doing(lead, run))["hospital-3"] and now, 60, "silence")
        assert now["hospital-1"] in ("training", "answered")
        record = run.finish()
    finally:
        lead.federation.start("hospital-3")
        lead.federation.wait_for(lead.session, since=time.time())
    first, *later = record["rounds"]
    assert record["status"] == "finished"
    assert 40 < first["seconds"] < 40 + 30
    assert max(one["seconds"] for one in later) < 20
    for one in (*record["rounds"], record["final"]):
        assert one["left_out"].keys() == {"hospital-3"}
        assert one["left_out"]["hospital-3"]["code"] == "silent"


def test_a_site_that_is_shut_out_is_not_waited_for_until_it_is_let_in_again(lead, experiment):
    """Its process at the site has ended by then, although nothing has happened to it."""
    admin = lead.federation.session(ADMIN)
    run = lead.submit(changed(experiment, name="shut_out_at_work", federation={"rounds": 20}))
    run.wait_for_training("hospital-2")
    log = lead.federation.kit("hospital-2") / "log.txt"
    before = len(log.read_text())
    try:
        admin.disable_client("hospital-2")
        shut_out = time.monotonic()
        run.wait_for_round(1)
        assert time.monotonic() - shut_out < 30
        assert run.record()["rounds"][0]["left_out"]["hospital-2"]["code"] == "shut_out"
        wait(lambda: doing(lead, run)["hospital-2"] == "was shut out", 30, "the word of it")
        wait(lambda: not run.processes("hospital-2"), 30, "the end of its process")
    finally:
        admin.enable_client("hospital-2")
        admin.close()
    record = run.finish()
    assert record["status"] == "finished"
    sites = [one["sites"].keys() for one in record["rounds"]]
    assert "hospital-2" not in sites[0]
    assert "hospital-2" in sites[-1]
    assert max(one["seconds"] for one in record["rounds"]) < 40
    said = log.read_text()[before:]
    assert said.count("an admin of the federation has shut this site out") == 1
    assert said.count("this site is let in again") == 1
    lead.federation.wait_for(lead.session, since=time.time())


def doing(lead, run) -> defaultdict[str, str]:
    """What ``status`` says of each site; nothing while the job's process has no time to answer."""
    sites = status(lead.session, run.job)["jobs"][run.job].get("sites", {})
    return defaultdict(str, {name: site["now"] for name, site in sites.items()})


@contextmanager
def small_disk(lead, megabytes: int) -> Iterator[Path]:
    """The server's kit on a file system of its own, which goes away with all that was written to it since."""
    kit = lead.federation.kit("server")
    content = kit.with_name("server below")
    lead.federation.kill("server")
    shutil.copytree(kit, content, symlinks=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", kit], capture_output=True, text=True
    )
    try:
        if mounted.returncode:
            pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
        shutil.copytree(content, kit, symlinks=True, dirs_exist_ok=True)
        restart_server(lead)
        yield kit
    finally:
        lead.federation.kill("server")
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", kit], check=True)
        restart_server(lead)


def fill(folder: Path) -> Path:
    """Takes all the space that is left. Returns the file that has it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    return filler


def restart_server(lead) -> None:
    lead.federation.start("server")
    lead.connect()
    lead.federation.wait_for(lead.session)


def test_a_full_disk_at_the_server(lead, experiment):
    with small_disk(lead, 64) as kit:
        run = lead.submit(changed(experiment, name="disk", federation={"rounds": 4}))
        run.wait_for_round(2)
        filler = fill(kit)
        wait(lambda: not run.processes("server"), 200, "the end of the job")
        filler.unlink()
        wait(lambda: lead.session.get_job_status(run.job) != "RUNNING", 60, "the job to be listed as ended")
        again = lead.clone(run)
        record = again.finish()
        assert record["status"] == "finished"
        assert record["continues"] == run.job
        assert [one["round"] for one in record["rounds"]] == [0, 1, 2, 3]


def test_clocks_that_are_an_hour_behind_and_ahead(lead, quick):
    shifted = {"hospital-1": -3600, "hospital-2": 3600}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent / "shifted_clock"), os.environ.get("PYTHONPATH")]))
    for name, seconds in shifted.items():
        lead.federation.kill(name)
        lead.federation.environment[name] = {"PYTHONPATH": path, "PT_PEFT_CLOCK_SHIFT": str(seconds)}
        lead.federation.start(name)
    try:
        lead.federation.wait_for(lead.session, since=time.time())
        run = lead.submit(changed(quick, name="clocks", federation={"min_sites": 3}))
        record = run.finish()
        assert record["status"] == "finished"
        assert not record["final"]["left_out"]
        times = {
            name: datetime.fromisoformat(json.loads(line)["time"])
            for name in lead.federation.sites
            for line in (lead.federation.kit(name) / run.job / "egress.jsonl").read_text().splitlines()
        }
        assert times["hospital-2"] - times["hospital-1"] > timedelta(minutes=110), "else the clocks were not shifted"
    finally:
        for name in shifted:
            lead.federation.kill(name)
            del lead.federation.environment[name]
            lead.federation.start(name)
        lead.federation.wait_for(lead.session, since=time.time())
