"""The measurements of benchmark.speed, and that all contenders do the same work."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmark.measurements.peak_memory import PeakMemory
from benchmark.speed.__main__ import alternating, main, medians, table
from benchmark.speed.bare import Bare
from benchmark.speed.contenders import HOOKS, flare_stock, ours, plain
from benchmark.speed.marks import VARIABLE
from benchmark.speed.measure import Mark, Measured, measure, phases, private_loopback, python_path, sent
from benchmark.speed.work import Work
from pt_peft.errors import UserError
from pt_peft.model.adapter_file import load_adapter
from pt_peft_flare.job_folder import write_job

SMALL = Work(sites=2, rounds=2, images=32)


def at(what: str, moment: float, site: str = "") -> Mark:
    return {"what": what, "site": site, "at": moment, "pid": 1, "cpu_s": moment / 2, "pss": 0}


def test_phases():
    noted = [
        at("imported", 103),
        at("begins", 104, "a"),
        at("ends", 106, "a"),
        at("begins", 105, "b"),
        at("ends", 108, "b"),
    ]
    noted += [at("begins", 109, "b"), at("ends", 110, "b"), at("begins", 112, "a"), at("ends", 113, "a")]
    found = phases(noted, 100, 115, rounds=2)
    seconds = {"imports_s": 3, "startup_s": 4, "training_s": 6, "gap_per_round_s": 1, "tail_s": 2}
    assert found == {**seconds, "training_cpu_s": 3.5}
    with pytest.raises(UserError, match=r"have trained in \{'a': 2, 'b': 2\} rounds; 3 each"):
        phases(noted, 100, 115, rounds=3)
    with pytest.raises(UserError, match="2 each would be right"):
        phases(noted[:-1], 100, 115, rounds=2)


def test_bytes_of_a_loopback(tmp_path):
    devices = "Inter-|\n face |\n  eth0: 5 1 0 0 0 0 0 0 7 1\n    lo: 10 1 0 0 0 0 0 0 1234 1 0 0 0 0 0 0\n"
    assert sent(devices) == 1234
    if not private_loopback():
        pytest.skip("this machine gives no process a loopback of its own")
    code = (
        "import socket; from benchmark.speed.marks import mark; a = socket.create_server(('127.0.0.1', 0));"
        "b = socket.create_connection(a.getsockname());"
        "mark('begins', 's'); b.sendall(bytes(100_000)); mark('ends', 's'); b.close();"
        "c = a.accept()[0]; print(len(c.makefile('rb').read())); import time; time.sleep(0.8)"
    )
    found = measure([sys.executable, "-c", code], tmp_path, 1, python_path())
    assert found.wire_bytes is not None
    assert 100_000 <= found.wire_bytes < 110_000
    assert found.wall_s > found.startup_s > 0
    assert found.peak_pss_gb > 0


def test_a_contender_that_fails_is_named(tmp_path):
    with pytest.raises(UserError, match=r"exit code 3; .*log.txt ends with: out of luck"):
        measure([sys.executable, "-c", "print('out of luck'); exit(3)"], tmp_path, 1, {})


@pytest.mark.parametrize(
    "work",
    [
        SMALL,
        Work(sites=1, images=32, last_blocks=2, prompts=0),
        Work(sites=1, images=32, rank=0, prompts=0),
        Work(sites=1, images=32, prompts=0, augment=True),
    ],
)
def test_bare_trains_what_ours_does(work, tmp_path, capsys):
    work.write(tmp_path / "work")
    bare = Bare(tmp_path / "work", threads=1)
    assert sum(4 * value.numel() for value in bare.trained.values()) == work.raw_bytes(tmp_path / "work")
    before = bare.state()
    images, labels = bare.images("site-1")
    first, second = (bare.train("site-1", images, labels) for _ in range(2))
    assert second < first
    assert all((before[name] != value).any() for name, value in bare.state().items())
    bare.load(before)
    assert all((before[name] == value).all() for name, value in bare.state().items())


def test_our_moments_are_noted_from_outside(tmp_path):
    site = SMALL.write(tmp_path / "work")
    write_job(SMALL.experiment(tmp_path / "work"), tmp_path / "job")
    (tmp_path / "site.json").write_text(site.model_dump_json())
    marks = tmp_path / "marks.jsonl"
    command = [
        sys.executable,
        "-m",
        "benchmark.oracle.reference",
        "job",
        "--site-file",
        "site.json",
        "--out",
        "adapter.safetensors",
    ]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**python_path(HOOKS), VARIABLE: str(marks)}
    )
    assert run.returncode == 0, run.stderr
    noted = [json.loads(line) for line in marks.read_text().splitlines()]
    assert [(one["what"], one["site"]) for one in noted] == [("imported", "")] + [
        (what, site) for _ in range(2) for site in SMALL.names for what in ("begins", "ends")
    ]


def test_memory_of_all_processes():
    code = "import time; held = b'x' * 80_000_000; time.sleep(60)"
    process = subprocess.Popen(["sh", "-c", '"$0" -c "$1"; true', sys.executable, code], start_new_session=True)
    until = time.monotonic() + 30
    with PeakMemory(psutil.Process(process.pid)) as memory:
        while memory.bytes < 80_000_000 and time.monotonic() < until:
            time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 80_000_000 <= memory.bytes < 200_000_000
    assert 80_000_000 <= max(memory.by_process.values()) <= memory.bytes


def test_an_interrupted_run_leaves_no_process(tmp_path, monkeypatch):
    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                while not (tmp_path / "pid").exists():
                    time.sleep(0.05)
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    code = (
        "import os, pathlib, time; pathlib.Path('new').write_text(str(os.getpid()));"
        "os.rename('new', 'pid'); time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        measure([sys.executable, "-c", code], tmp_path, 1, {})
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "pid").read_text())).wait(10)


def test_medians_and_table():
    runs = [
        Measured(wall, 1.0, 2.0, 3.0, 0.1, 0.5, 1.0, wire, 2.0, None)
        for wall, wire in ((10.0, 300), (30.0, 330), (12.0, 310))
    ]
    found = medians(runs, raw_bytes=10, transfers=30)
    assert found["wall_s"] == 12.0
    assert found["wire_over_raw"] == pytest.approx(310 / 300)
    assert len(found["runs"]) == 3
    assert medians(runs, 10, transfers=0)["wire_over_raw"] is None
    shown = table({"plain": found, "ours": {**found, "wall_s": 12.6}}).splitlines()
    assert shown[3].startswith("| ours | 1.05 | 12.60 |")


def test_options_that_make_no_sense(tmp_path, capsys):
    for arguments, message in (
        (["--repeats", "0"], "--repeats: 0; 1 or more"),
        (["--out", str(tmp_path / "no" / "x.json")], "is not a folder"),
        (["--keep", str(tmp_path)], "exists; the name of a new folder"),
        (["--out", str(tmp_path)], "is a folder; the name of a file"),
        (["--only", "flower"], "--only: flower needs a Python"),
        (["--flower", str(tmp_path / "python")], "python cannot be run (No such file"),
        (["--flower", shutil.which("false")], "has no flwr[simulation] (no reason given)"),
    ):
        assert main(arguments) != 0
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_contenders(tmp_path):
    site, data = SMALL.write(tmp_path / "work"), tmp_path / "work"
    contenders = {"plain": plain(SMALL, data), "flare_stock": flare_stock(SMALL, data), "ours": ours(SMALL, data, site)}
    runs = alternating(contenders, 1, tmp_path, SMALL.rounds)
    for name, (run,) in runs.items():
        assert run.wall_s > run.startup_s + run.training_s + run.tail_s - 0.01, name
        assert run.training_s > 0, name
        assert run.training_cpu_s > 0, name
        assert (run.server is not None) == (name == "ours")
    raw = SMALL.raw_bytes(data)
    if private_loopback():
        for name in ("flare_stock", "ours"):
            wire, least = runs[name][0].wire_bytes, contenders[name].transfers * raw
            assert wire is not None
            assert least < wire < 3 * least + 2_000_000
    final, _ = load_adapter(
        tmp_path / "runs" / "ours-0" / "workspace" / "server" / "simulate_job" / "adapter.safetensors"
    )
    assert sum(value.nbytes for value in final.values()) == raw
