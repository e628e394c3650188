"""Sweeps: what is run, what is kept, and what happens when something dies."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import psutil
import pytest
import torch
import yaml

from benchmark.__main__ import main
from benchmark.report.curves import validation_curve
from benchmark.sweep import engines
from benchmark.sweep.cluster import workers
from benchmark.sweep.records import AnyRun, BaselineRecord, CellRecord, FailureRecord, SuiteRecord, TrialRecord
from benchmark.sweep.result_file import ResultFile, read
from helpers import ROOT

SMOKE = yaml.safe_load((ROOT / "benchmark" / "suites" / "smoke.yaml").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A suite that takes seconds in the plain loop."""
    data = {"lesions": {**SMOKE["data"]["lesions"]}}
    data["lesions"]["data"] = {**data["lesions"]["data"], "images_per_site": {"train": 16, "val": 8, "test": 16}}
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(yaml.safe_dump({**SMOKE, "name": "small", "data": data, "seeds": [0, 1], "tuning": None}))
    return path


def results(path: Path) -> dict[str, AnyRun]:
    return read(path).runs


def lines(path: Path) -> dict[str, bytes]:
    """Each run as it is written, by its name. A run that was done again has other seconds or another time."""
    contents = read(path)
    return {name: contents.lines[2, name] for name in contents.runs}


def plain_loop(suite: Path, out: Path, *options: str) -> list[str]:
    return ["run", str(suite), "--engine", "reference", "--verify", "0", "--jobs", "1", "--out", str(out), *options]


@pytest.fixture(scope="module")
def swept(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "small.jsonl"
    assert main(plain_loop(small, out)) == 0
    return out


def test_each_result_is_complete_and_its_predictions_give_its_metrics(swept):
    found = results(swept)
    assert len(found) == 8
    for one in found.values():
        assert not isinstance(one, FailureRecord)
        assert one.seconds["total"] > 0
        assert one.precision == "float32"
        assert (one.peak_memory_bytes or 0) > 1e8
        assert one.provenance.versions["torch"] == torch.__version__.partition("+")[0]
        if isinstance(one, BaselineRecord):
            expected = {"pooled": ["pooled", "majority class"], "local": ["local site-1", "local site-2"]}
            assert [row.name for row in one.rows] == expected[one.axes.method]
            continue
        assert isinstance(one, CellRecord)
        assert one.exchanged_parameters == {"lora": 9604, "linear_probe": 388}[one.axes.method]
        assert one.wire_bytes == one.bytes_in + one.bytes_out == 2 * 2 * 2 * 4 * one.exchanged_parameters
        assert [entry.round for entry in one.rounds] == [0, 1]
        assert one.final.val
        assert one.class_counts
        assert {name: sum(counts) for name, counts in one.class_counts.items()} == {"site-1": 16, "site-2": 16}
        kept = one.predictions
        assert kept.logits.shape == (32, 4)
        assert kept.site.tolist() == [0] * 16 + [1] * 16
        assert kept.metrics("multiclass")["pooled"] == one.final.test.pooled.model_dump(
            exclude={"quadratic_kappa", "mean_absolute_error"}
        )


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(swept, small, capsys):
    before = lines(swept)
    gone, cut, other, *_ = sorted(name for name, run in results(swept).items() if run.kind == "cell")
    first = results(swept)[gone]
    changed = before[other].replace(b'"local_epochs":1', b'"local_epochs":2')
    kept = [line for name, line in before.items() if name not in (gone, cut, other)]
    header = swept.read_bytes().splitlines(keepends=True)[0]
    swept.write_bytes(b"".join([header, *kept, changed, before[cut][:-100]]))
    assert main(plain_loop(small, swept)) == 0
    assert "is cut off" in capsys.readouterr().err
    assert swept.with_suffix(".broken").read_bytes() == before[cut][:-100]
    after = lines(swept)
    assert {name for name in before if after[name] != before[name]} == {gone, cut, other}
    again = results(swept)[gone]
    assert isinstance(first, CellRecord)
    assert isinstance(again, CellRecord)
    assert again.final == first.final  # the same cell gives the same numbers


def test_a_method_tries_further_rates_while_the_best_lies_at_an_end(small, tmp_path):
    fields = yaml.safe_load(small.read_text())
    rates = {"tuning": {"factors": [0.01, 0.1], "widen": 1, "seed": 9}}
    path, out = tmp_path / "wider.yaml", tmp_path / "wider.jsonl"
    path.write_text(yaml.safe_dump({**fields, **rates, "methods": ["linear_probe"], "baselines": None, "seeds": [0]}))
    assert main(plain_loop(path, out)) == 0
    (choice,) = read(out).choices.values()
    low, high, more = choice.trials
    assert low.val is not None
    assert high.val is not None
    beyond = 3e-5 if low.val >= high.val else 3e-2
    assert [one.learning_rate for one in (low, high, more)] == pytest.approx([3e-4, 3e-3, beyond])
    for index, one in enumerate(choice.trials):
        trial = results(out)[f"lesions.none.embedded.default.linear_probe.9.trial-{index}"]
        assert isinstance(trial, TrialRecord)
        assert trial.val.pooled, "one model, all sites' images"
        assert one.val == trial.val.pooled.balanced_accuracy
    before = lines(out)
    assert main(plain_loop(path, out)) == 0
    assert lines(out) == before


@pytest.mark.slow
def test_a_part_of_a_suite(small, tmp_path, capsys):
    out = tmp_path / "small.jsonl"
    command = plain_loop(small, out)
    assert main([*command, "--only", "method=linear_probe", "--only", "seed=1"]) == 0
    assert list(results(out)) == ["lesions.none.embedded.default.linear_probe.1"]
    assert main([*command, "--only", "method=lra"]) == 1
    assert "the suite has no method 'lra'; it has linear_probe, local, lora, pooled" in capsys.readouterr().err


def test_a_part_that_is_empty(small, tmp_path, capsys):
    path = tmp_path / "two.yaml"
    path.write_text("extends: paper\nname: two\ndata: [cifar10, ham10000]\n")
    command = ["run", str(path), "--out", str(tmp_path / "o.jsonl")]
    assert main([*command, "--only", "data=cifar10", "--only", "partition=natural"]) == 1
    assert "--only: the suite 'two' has no cell with all of these values" in capsys.readouterr().err
    path.write_text(yaml.safe_dump({**yaml.safe_load(small.read_text()), "name": "three", "baselines": None}))
    assert main([*plain_loop(path, tmp_path / "p.jsonl"), "--only", "method=local"]) == 1
    assert "--only: the suite 'three' has no cell with all of these values" in capsys.readouterr().err


def test_what_cannot_be_written_or_borne_is_said_first(small, swept, tmp_path, capsys):
    def refusal(*options: str) -> str:
        assert main(["run", str(small), *options]) == 1
        return capsys.readouterr().err

    (tmp_path / "folder.jsonl").mkdir()
    assert "folder.jsonl is a folder" in refusal("--out", str(tmp_path / "folder.jsonl"))
    assert "no is not a folder" in refusal("--out", str(tmp_path / "no" / "small.jsonl"))
    assert "the name of a file that ends in .jsonl would be right" in refusal("--out", str(tmp_path))
    out = tmp_path / "small.jsonl"
    assert "--verify is 1 with --compile" in refusal("--out", str(out), "--verify", "1", "--compile")
    assert "--jobs is 100000, but the free memory is enough for" in refusal("--out", str(out), "--jobs", "100000")
    assert not out.exists()
    out.write_text("{}\n")
    assert "line 1: has the kind None" in refusal("--out", str(out))
    out.write_bytes(swept.read_bytes().replace(b'"name":"small"', b'"name":"other"', 1))
    assert "holds results of the suite 'other', not of 'small'" in refusal("--out", str(out))


def test_cells_that_fail_stop_no_other_and_run_again_later(small, tmp_path, capsys):
    suite = yaml.safe_load(small.read_text())
    table = tmp_path / "later.csv"
    data = {"source": "site", "classes": ["a", "b"]}
    site = {"table": str(table), "images": str(tmp_path)}
    suite["data"] = {"absent": {"domain": "none", "sites": ["s"], "data": data, "site": site}, **suite["data"]}
    suite |= {"seeds": [0], "methods": ["linear_probe"]}
    path, out = tmp_path / "failing.yaml", tmp_path / "out.jsonl"
    path.write_text(yaml.safe_dump(suite))
    command = plain_loop(path, out)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "3 of 6 cells failed; the first, 'absent.none.embedded.default.linear_probe.0'" in said
    assert "cells: absent.none.embedded.default.linear_probe.0 failed (" in said
    assert said.count(" of 6)\n") == 6, "a line for each run where there is no terminal"
    found = results(out)
    absent = {name for name in found if "absent" in name}
    assert {name for name, one in found.items() if isinstance(one, FailureRecord)} == absent
    failed = found["absent.none.embedded.default.linear_probe.0"]
    assert isinstance(failed, FailureRecord)
    assert "later.csv" in failed.reason
    assert failed.run_kind == "cell"
    assert failed.seconds["total"] >= 0
    before = lines(out)
    assert main(command) == 1
    assert {name for name, line in lines(out).items() if line != before[name]} == absent
    assert len(out.read_bytes().splitlines()) == 7, "the file is compacted"


def start(small: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmark", "run", str(small), "--engine", "reference", "--verify", "0"]
    return subprocess.Popen(
        [*command, "--out", str(out), *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_sweep_leaves_nothing_and_goes_on_later(small, tmp_path):
    out = tmp_path / "small.jsonl"
    children = []
    with start(small, out, "--jobs", "1") as process:

        def first_result() -> bool:
            children[:] = psutil.Process(process.pid).children(recursive=True)
            return out.exists() and len(results(out)) >= 1

        wait_for(first_result)
        process.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 30)
    before = lines(out)
    assert 1 <= len(before) < 8
    assert main(plain_loop(small, out)) == 0
    after = lines(out)
    assert len(after) == 8
    assert before.items() <= after.items()


def test_ctrl_c_says_how_far_it_is(small, tmp_path):
    out = tmp_path / "small.jsonl"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    with start(small, out, "--jobs", "1") as process:
        signal.signal(signal.SIGINT, before)
        wait_for(lambda: out.exists() and len(results(out)) >= 1)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read() if process.stdout else ""
    assert process.returncode == 130
    assert re.search(r"\n[1-7] of 8 cells are finished; the same command goes on with the others\.\n", said)


def test_workers_of_this_machine_may_be_silent_as_long_as_it_sleeps():
    with workers(1, None) as client:
        ttl = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl)
    assert ttl is None


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_still_finishes(small, tmp_path):
    from distributed import Client, LocalCluster

    out = tmp_path / "small.jsonl"
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with cluster, Client(cluster) as client, start(small, out, "--cluster", str(cluster.scheduler_address)) as process:
        wait_for(lambda: out.exists() and len(results(out)) >= 1)
        pids = cast(dict[str, int], client.run(os.getpid))
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert not any(isinstance(one, FailureRecord) for one in results(out).values())
    assert len(results(out)) == 8


def test_no_scheduler_there(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmark.sweep.cluster.CONNECT_S", 1)
    assert main(["run", str(small), "--cluster", "tcp://127.0.0.1:1", "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "--cluster: no scheduler of Dask answers at 'tcp://127.0.0.1:1'" in capsys.readouterr().err


def test_two_at_once_are_refused(small, tmp_path, capsys):
    with ResultFile.open(tmp_path / "small.jsonl", SuiteRecord(name="small", suite={})):
        assert main(["run", str(small), "--out", str(tmp_path / "small.jsonl")]) == 1
    assert "another process is writing its results there" in capsys.readouterr().err


def test_statistics_are_among_the_bytes(small, tmp_path):
    """Before the first round those of its start, at the end all."""
    suite, out = tmp_path / "solved.yaml", tmp_path / "solved.jsonl"
    head = {"start": "lda", "finish": "lda", "penalties": [0.1], "temperature": False}
    fields = yaml.safe_load(small.read_text())
    defaults = {**fields.get("defaults", {}), "head": head}
    suite.write_text(yaml.safe_dump({**fields, "defaults": defaults, "methods": ["lora"], "seeds": [0]}))
    assert main([*plain_loop(suite, out), "--only", "method=lora"]) == 0
    (cell,) = results(out).values()
    assert isinstance(cell, CellRecord)
    assert [(one.when, one.stage) for one in cell.statistics] == [("start", "moments"), ("finish", "moments")]
    width, classes, sites = 96, len(fields["data"]["lesions"]["data"]["classes"]), 2
    numbers = classes + classes * width + width * (width + 1) // 2
    assert [one.bytes_out for one in cell.statistics] == [8 * numbers * sites] * 2
    rounds = sum(one.bytes_in + one.bytes_out for one in cell.rounds)
    stages = [one.bytes_in + one.bytes_out for one in cell.statistics]
    assert cell.wire_bytes == rounds + sum(stages)
    curve = validation_curve(cell, "balanced_accuracy")
    assert (curve[0].wire_bytes, curve[-1].wire_bytes) == (stages[0], cell.wire_bytes)


def test_sites_compile_and_the_records_say_so(small, tmp_path, monkeypatch):
    """Without a compiler, which would take half a minute: that is `tests/training/test_gpu.py`'s."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # the worker has it too
    out = tmp_path / "small.jsonl"
    only = ["--compile", "--only", "method=lora", "--only", "seed=0"]
    assert main(["run", str(small), "--engine", "reference", "--jobs", "1", "--out", str(out), *only]) == 0
    (cell,) = results(out).values()
    assert cell.compiled


@pytest.mark.slow
def test_both_engines_end_with_the_same_adapter(small, tmp_path):
    """One cell in FLARE's simulator, verified against the plain loop, which finds the same bytes and metrics too."""
    flare_out, loop_out = tmp_path / "flare.jsonl", tmp_path / "loop.jsonl"
    only = ["--only", "method=lora", "--only", "seed=0"]
    command = ["run", str(small), "--jobs", "1", "--engine", "flare", "--verify", "1", "--out", str(flare_out)]
    assert main([*command, *only]) == 0
    assert main(plain_loop(small, loop_out, *only)) == 0
    name = "lesions.none.embedded.default.lora.0"
    flare, loop = results(flare_out)[name], results(loop_out)[name]
    assert isinstance(flare, CellRecord)
    assert isinstance(loop, CellRecord)
    assert flare.engine == "flare"
    assert flare.verification
    assert flare.verification.engine == "reference"
    assert flare.verification.max_difference <= 1e-6
    assert flare.final.test.pooled.confusion == loop.final.test.pooled.confusion
    for one, other in zip(flare.rounds, loop.rounds, strict=True):
        assert (one.bytes_in, one.bytes_out) == (other.bytes_in, other.bytes_out)
        assert one.val
        assert other.val
        assert one.val.model_dump() == pytest.approx(other.val.model_dump(), abs=1e-4)


def test_simulations_share_a_host(tmp_path):
    """Until it ends, however that happens."""
    first = engines._shared_host(tmp_path)
    assert engines._shared_host(tmp_path) == first
    assert engines._host
    os.killpg(engines._host._process.pid, signal.SIGKILL)
    engines._host._process.wait()
    assert engines._shared_host(tmp_path) != first
    engines._host.close()
