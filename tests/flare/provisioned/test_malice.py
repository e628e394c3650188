"""A site that was tampered with: its filter stops it, and if that was tampered with too, the server does."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmark.federation.lead import _cmdline
from helpers import changed
from pt_peft.model.adapter_file import load_adapter

pytestmark = pytest.mark.slow


def run_with(lead, experiment, faults):
    """The record of a job in which hospital-3 does one of `faults` in each round, and nothing wrong in the last."""
    path = lead.federation.kit("hospital-3") / "faults.json"
    path.write_text(json.dumps({experiment.name: dict(enumerate(faults))}))
    run = lead.submit(
        changed(experiment, federation={"rounds": len(faults) + 1, "round_timeout_s": 60, "site_timeout_s": 60})
    )
    record = run.finish()
    assert record["status"] == "finished"
    assert len(record["rounds"]) == len(faults) + 1
    assert "hospital-3" in record["rounds"][-1]["sites"]
    assert not record["final"]["left_out"]
    final, _ = load_adapter(run.results / "adapter.safetensors")
    assert all(np.isfinite(value).all() for value in final.values())
    return run, [one["left_out"] for one in record["rounds"][:-1]]


def test_the_sites_filter_stops_a_learner_that_was_tampered_with(lead, quick):
    faults = {
        "image": "not allowed: 'image'",
        "full state dict": "missing",
        "extra metric": "pixels",
        "hidden in shape": "shape",
        "nan": "head.bias",
        "pickled": "head.bias",
        "many samples": "num_samples",
    }
    run, left_out = run_with(lead, changed(quick, name="learner"), faults)
    lines = (lead.federation.kit("hospital-3") / run.job / "egress.jsonl").read_text().splitlines()
    ledger = {line["round"]: line for line in map(json.loads, lines) if line["task"] == "train"}
    for number, (fault, word) in enumerate(faults.items()):
        assert left_out[number].keys() == {"hospital-3"}, fault
        assert "held back by the egress filter" in left_out[number]["hospital-3"]["sentence"], fault
        assert word in ledger[number]["held_back"], fault
        assert "tensors" not in ledger[number], fault
    assert "tensors" in ledger[len(faults)]


def test_the_server_stops_a_site_without_a_filter(lead, quick):
    faults = {
        "nan": r": tensors \(tensor",
        "wrong shape": "at most|: tensors",
        "image": "at most|: tensors",
        "hundredfold": "at most",
        "another adapter": ": tensors",
        "extra metric": "had to send: report",
        "many samples": "num_samples",
        "late": "no answer within 60 s",
    }
    run, left_out = run_with(
        lead, changed(quick, name="without_a_filter"), [f"{fault}, past the filter" for fault in faults]
    )
    for number, (fault, word) in enumerate(faults.items()):
        assert left_out[number].keys() == {"hospital-3"}, fault
        assert re.search(word, left_out[number]["hospital-3"]["sentence"]), fault
    log = (run.results / "log.txt").read_text()
    assert "round 1: hospital-3 is left out of task 'train': " in log


BEFORE_ITS_RESULT = (
    "ends the job", "fires an event", "many curves", "says that it was sent too much", "says that the job has failed",
    "takes the tokens of the others", "stops the server", "stops another site", "speaks for the server",
    "garbage", "many objects", "many tensors", "much data", "fetches", "writes a file", "never ends",
)  # fmt: skip


def test_nothing_that_a_site_says_beside_its_results_does_harm(lead, quick):
    """It also sends its result in each round, so that only a refused result may cost it one, and none may wait."""
    experiment = changed(
        quick,
        name="hostile",
        federation={"rounds": len(BEFORE_ITS_RESULT), "round_timeout_s": 120, "site_timeout_s": 100},
    )
    kit = lead.federation.kit("hospital-3")
    (kit / "faults.json").write_text(json.dumps({"hostile": dict(enumerate(BEFORE_ITS_RESULT))}))
    run = lead.submit(experiment)
    most = {"parent": 0, "job": 0}
    while len(run.record()["rounds"]) < len(BEFORE_ITS_RESULT) and not run.ended():
        for process in lead.federation.processes("server"):
            program = " ".join(_cmdline(process))
            kind = "job" if run.job in program else "parent" if "server_train" in program else None
            if kind:
                most[kind] = max(most[kind], peak_memory(process))
        time.sleep(0.5)
    record = run.finish()
    assert record["status"] == "finished", record.get("reason")
    for number, one in enumerate(record["rounds"]):
        refused = number >= BEFORE_ITS_RESULT.index("garbage")
        assert not one["left_out"] or (refused and one["left_out"].keys() == {"hospital-3"}), BEFORE_ITS_RESULT[number]
        assert one["seconds"] < 60, BEFORE_ITS_RESULT[number]
    assert not (kit / "tokens.txt").exists()
    assert most["job"] < 500e6
    assert most["parent"] < 500e6


def test_a_result_that_is_sent_again_counts_once(lead, quick):
    """Word for word, as a site may; on the line TLS rules it out."""
    faults = ["records", "replays", "replays"]
    experiment = changed(quick, name="replay", federation={"rounds": 4, "round_timeout_s": 60, "site_timeout_s": 60})
    (lead.federation.kit("hospital-3") / "faults.json").write_text(json.dumps({"replay": dict(enumerate(faults))}))
    run = lead.submit(experiment)
    record = run.finish()
    assert record["status"] == "finished"
    for one in record["rounds"]:
        assert not one["left_out"]
        assert {site: report["share"] for site, report in one["sites"].items()} == pytest.approx(
            dict.fromkeys(lead.federation.sites, 1 / 3)
        )
    log = (run.results / "log.txt").read_text()
    assert log.count("client task result is already received - submission dropped") == 6


def test_a_result_that_trickles_in_costs_its_site_the_round(lead, quick):
    _, left_out = run_with(lead, changed(quick, name="trickle"), ["trickles"])
    assert [{site: one["sentence"] for site, one in left_out[0].items()}] == [{"hospital-3": "no answer within 60 s"}]


def test_a_stolen_kit_beside_the_real_one_is_one_site(lead, quick):
    """They put each other's connection out, and each comes back: rounds take longer, and neither counts twice."""
    federation, real = lead.federation, lead.federation.kit("hospital-2")
    stolen = lead.folder / "stolen" / "hospital-2"
    shutil.copytree(real, stolen)
    for name in ("daemon_pid.fl", "pid.fl"):
        (stolen / name).unlink(missing_ok=True)
    run = lead.submit(
        changed(quick, name="stolen", federation={"rounds": 20, "round_timeout_s": 60, "site_timeout_s": 60})
    )
    run.wait_for_round(2)
    try:
        subprocess.run(["bash", str(stolen / "startup" / "start.sh")], check=True, start_new_session=True)
        record = run.finish(600)
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(stolen) in argument for argument in process.info["cmdline"] or ()):
                process.kill()
        federation.kill("hospital-2")
        federation.start("hospital-2")
        federation.wait_for(lead.session, "hospital-2", since=time.time())
    assert record["status"] == "finished"
    assert {site for one in record["rounds"] for site in one["sites"]} == set(federation.sites)
    for one in record["rounds"]:
        assert [report["share"] for report in one["sites"].values()] == pytest.approx(
            [1 / len(one["sites"])] * len(one["sites"])
        )


def peak_memory(process):
    """The most resident memory that a process has had so far, in bytes."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def test_a_site_whose_process_ends_with_an_error_is_out_of_the_job_alone(lead, quick):
    experiment = changed(quick, name="exit", federation={"rounds": 2, "round_timeout_s": 60, "site_timeout_s": 60})
    (lead.federation.kit("hospital-3") / "faults.json").write_text(json.dumps({"exit": {"0": "exit"}}))
    record = lead.submit(experiment).finish()
    assert record["status"] == "finished"
    assert [sorted(one["sites"]) for one in record["rounds"]] == [["hospital-1", "hospital-2"]] * 2
    assert "hospital-3 has failed (101) and is out of it" in (lead.federation.kit("server") / "log.txt").read_text()
