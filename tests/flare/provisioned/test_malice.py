"""A site that was tampered with: its filter stops it, and if that was tampered with too, the server does."""

import json

import numpy as np
import pytest

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
        "nan": "not finite",
        "wrong shape": "head.bias",
        "image": "not allowed: 'image'",
        "hundredfold": "head.bias",
        "another adapter": "missing",
        "extra metric": "pixels",
        "pickled": "head.bias",
        "many samples": "num_samples",
        "late": "no answer within 60 s",
    }
    run, left_out = run_with(
        lead, changed(quick, name="without_a_filter"), [f"{fault}, past the filter" for fault in faults]
    )
    for number, (fault, word) in enumerate(faults.items()):
        assert left_out[number].keys() == {"hospital-3"}, fault
        assert word in left_out[number]["hospital-3"]["sentence"], fault
    log = (run.results / "log.txt").read_text()
    assert "round 1: hospital-3 is left out of task 'train': " in log


def test_a_site_whose_process_ends_with_an_error_is_out_of_the_job_alone(lead, quick):
    experiment = changed(quick, name="exit", federation={"rounds": 2, "round_timeout_s": 60, "site_timeout_s": 60})
    (lead.federation.kit("hospital-3") / "faults.json").write_text(json.dumps({"exit": {"0": "exit"}}))
    record = lead.submit(experiment).finish()
    assert record["status"] == "finished"
    assert [sorted(one["sites"]) for one in record["rounds"]] == [["hospital-1", "hospital-2"]] * 2
    assert "hospital-3 has failed (101) and is out of it" in (lead.federation.kit("server") / "log.txt").read_text()
