"""Sweeps: what is run, what is kept, and what happens when something dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

from benchmark.__main__ import main
from benchmark.sweep import engines
from helpers import ROOT
from pt_peft.training.metrics import evaluate_predictions

SMOKE = yaml.safe_load((ROOT / "benchmark" / "suites" / "smoke.yaml").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A suite that takes seconds in the plain loop."""
    data = {"lesions": {**SMOKE["data"]["lesions"]}}
    data["lesions"]["data"] = {**data["lesions"]["data"], "images_per_site": {"train": 16, "val": 8, "test": 16}}
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(yaml.safe_dump({**SMOKE, "name": "small", "data": data, "seeds": [0, 1], "tuning": None}))
    return path


def results(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*/*.json")}


def stamps(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}


@pytest.fixture(scope="module")
def swept(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert main(["run", str(small), "--engine", "reference", "--verify", "0", "--jobs", "1", "--out", str(out)]) == 0
    return out


def test_each_result_is_complete_and_its_predictions_give_its_metrics(swept):
    found = results(swept)
    assert len(found) == 8
    assert {one["status"] for one in found.values()} == {"finished"}
    for name, one in found.items():
        assert one["seconds"]["total"] > 0
        assert one["peak_memory_bytes"] > 1e8
        assert one["provenance"]["versions"]["torch"] == torch.__version__.partition("+")[0]
        if "rows" in one:
            expected = {"pooled": ["pooled", "majority class"], "local": ["local site-1", "local site-2"]}
            assert [row["name"] for row in one["rows"]] == expected[one["axes"]["method"]]
            continue
        assert one["exchanged_parameters"] == {"lora": 9604, "linear_probe": 388}[one["axes"]["method"]]
        assert one["wire_bytes"] == one["bytes_in"] + one["bytes_out"] == 2 * 2 * 2 * 4 * one["exchanged_parameters"]
        assert [entry["round"] for entry in one["rounds"]] == [0, 1]
        assert one["final"]["val"]["mean"]["accuracy"] >= 0
        with np.load(swept / "cells" / f"{name}.npz", allow_pickle=False) as kept:
            assert kept["logits"].shape == (32, 4)
            assert kept["site"].tolist() == [0] * 16 + [1] * 16
            metrics = evaluate_predictions(torch.from_numpy(kept["logits"]), torch.from_numpy(kept["labels"]))
        assert metrics == one["final"]["test"]["pooled"]


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(swept, small):
    before = stamps(swept)
    gone, damaged, cut, whole = sorted(path.stem for path in (swept / "cells").glob("*.json"))
    (swept / "cells" / f"{gone}.npz").unlink()
    first = results_of(swept, gone)
    (swept / "cells" / f"{damaged}.json").write_text("{")
    (swept / "cells" / f"{cut}.npz").write_bytes(b"PK")
    (swept / "cells" / f"{whole}.json").write_text(json.dumps({**results_of(swept, whole), "final": None}))
    assert main(["run", str(small), "--engine", "reference", "--verify", "0", "--jobs", "1", "--out", str(swept)]) == 0
    after = stamps(swept)
    assert {name for name in before if after[name] != before[name]} == {gone, damaged, cut, whole}
    again = results_of(swept, gone)
    assert again["final"] == first["final"]  # the same cell gives the same numbers


def results_of(folder: Path, name: str) -> dict:
    return json.loads((folder / "cells" / f"{name}.json").read_text())


@pytest.mark.slow
def test_a_part_of_a_suite(small, tmp_path, capsys):
    command = ["run", str(small), "--engine", "reference", "--verify", "0", "--jobs", "1", "--out", str(tmp_path)]
    assert main([*command, "--only", "method=linear_probe", "--only", "seed=1"]) == 0
    assert list(results(tmp_path)) == ["lesions.none.embedded.mean.linear_probe.1"]
    assert main([*command, "--only", "method=lra"]) == 1
    assert "the suite has no method 'lra'; it has linear_probe, local, lora, pooled" in capsys.readouterr().err


def test_a_part_that_is_empty(small, tmp_path, capsys):
    path = tmp_path / "two.yaml"
    path.write_text("extends: paper\nname: two\ndata: [cifar10, ham10000]\n")
    assert (
        main(
            ["run", str(path), "--out", str(tmp_path / "out"), "--only", "data=cifar10", "--only", "partition=natural"]
        )
        == 1
    )
    assert "--only: the suite 'two' has no cell with all of these values" in capsys.readouterr().err


def test_what_cannot_be_written_or_borne_is_said_first(small, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", str(small), "--out", str(tmp_path / "file")]) == 1
    assert "--out: " in (said := capsys.readouterr().err)
    assert "is not a folder" in said
    assert main(["run", str(small), "--out", str(tmp_path / "out"), "--jobs", "100000"]) == 1
    assert "--jobs is 100000, but the free memory bears" in capsys.readouterr().err
    (tmp_path / "tuning.json").write_text("{}")
    assert main(["run", str(small), "--out", str(tmp_path)]) == 1
    assert "tuning.json: is not a list" in capsys.readouterr().err


def test_cells_that_fail_stop_no_other_and_run_again_later(small, tmp_path, capsys):
    suite = yaml.safe_load(small.read_text())
    table = tmp_path / "later.csv"
    data = {"source": "csv", "classes": ["a", "b"]}
    site = {"table": str(table), "images": str(tmp_path)}
    suite["data"] = {"absent": {"domain": "none", "sites": ["s"], "data": data, "site": site}, **suite["data"]}
    suite |= {"seeds": [0], "methods": ["linear_probe"]}
    path, out = tmp_path / "failing.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(suite))
    command = ["run", str(path), "--engine", "reference", "--verify", "0", "--jobs", "1", "--out", str(out)]
    assert main(command) == 1
    assert "3 of 6 cells failed; the first, 'absent.none.embedded.mean.linear_probe.0'" in capsys.readouterr().err
    found = results(out)
    assert {name for name, one in found.items() if one["status"] == "failed"} == {
        name for name in found if "absent" in name
    }
    failed = found["absent.none.embedded.mean.linear_probe.0"]
    assert "later.csv" in failed["reason"]
    assert failed["final"] is None
    assert failed["seconds"]["total"] >= 0
    before = stamps(out)
    assert main(command) == 1
    assert {name for name, stamp in stamps(out).items() if stamp != before[name]} == {
        name for name in found if "absent" in name
    }


def start(small: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "benchmark",
        "run",
        str(small),
        "--engine",
        "reference",
        "--verify",
        "0",
        "--out",
        str(out),
    ]
    return subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_sweep_leaves_nothing_and_goes_on_later(small, tmp_path):
    children = []
    with start(small, tmp_path, "--jobs", "1") as process:

        def first_result() -> bool:
            children[:] = psutil.Process(process.pid).children(recursive=True)
            return len(results(tmp_path)) >= 1

        wait_for(first_result)
        process.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 30)
    before = stamps(tmp_path)
    assert 1 <= len(before) < 8
    assert (
        main(["run", str(small), "--engine", "reference", "--verify", "0", "--jobs", "1", "--out", str(tmp_path)]) == 0
    )
    after = stamps(tmp_path)
    assert len(after) == 8
    assert before.items() <= after.items()


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_still_finishes(small, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        start(small, tmp_path / "out", "--cluster", cluster.scheduler_address) as process,
    ):
        wait_for(lambda: len(results(tmp_path / "out")) >= 1)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert {one["status"] for one in results(tmp_path / "out").values()} == {"finished"}
    assert len(results(tmp_path / "out")) == 8


def test_no_scheduler_there(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmark.sweep.cluster.CONNECT_S", 1)
    assert main(["run", str(small), "--cluster", "tcp://127.0.0.1:1", "--out", str(tmp_path)]) == 1
    assert "--cluster: no scheduler of Dask answers at 'tcp://127.0.0.1:1'" in capsys.readouterr().err


def test_two_at_once_in_one_folder_are_refused(small, tmp_path, capsys):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"):
        assert main(["run", str(small), "--out", str(tmp_path)]) == 1
    assert "another process is writing its results there" in capsys.readouterr().err


@pytest.mark.slow
def test_both_engines_end_with_the_same_adapter(small, tmp_path):
    """One cell in FLARE's simulator, verified against the plain loop, which finds the same bytes and metrics too."""
    command = ["run", str(small), "--jobs", "1", "--only", "method=lora", "--only", "seed=0"]
    assert main([*command, "--engine", "flare", "--verify", "1", "--out", str(tmp_path / "flare")]) == 0
    assert main([*command, "--engine", "reference", "--verify", "0", "--out", str(tmp_path / "loop")]) == 0
    name = "lesions.none.embedded.mean.lora.0"
    flare, loop = results_of(tmp_path / "flare", name), results_of(tmp_path / "loop", name)
    assert flare["engine"] == "flare"
    assert flare["verification"]["engine"] == "reference"
    assert flare["verification"]["max_difference"] <= 1e-6
    assert flare["final"]["test"]["pooled"]["confusion"] == loop["final"]["test"]["pooled"]["confusion"]
    for one, other in zip(flare["rounds"], loop["rounds"], strict=True):
        assert (one["bytes_in"], one["bytes_out"]) == (other["bytes_in"], other["bytes_out"])
        assert one["val"] == pytest.approx(other["val"], abs=1e-5)


def test_simulations_share_a_host(tmp_path):
    """Until it ends, however that happens."""
    first = engines._shared_host(tmp_path)
    assert engines._shared_host(tmp_path) == first
    os.killpg(engines._host._process.pid, signal.SIGKILL)
    engines._host._process.wait()
    assert engines._shared_host(tmp_path) != first
    engines._host.close()
