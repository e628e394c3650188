"""Simulated sites' processes are forks, and nobody can tell."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pt_peft_flare.short_waits import SiteStarter
from pt_peft_flare.site_fork import PROGRAM, brings_imported
from pt_peft_flare.site_processes import SiteFork

PROBE = """
import json, os, sys
from pathlib import Path
imported = "numpy" in sys.modules
import numpy, pt_peft
found = {
    "name": __name__, "arguments": sys.argv[1:], "folder": os.getcwd(), "first": sys.path[0],
    "environment": dict(os.environ), "leads": os.getsid(0) == os.getpid(), "imported": imported,
    "drawn": numpy.random.random(), "pt_peft": pt_peft.__file__, "cores": len(os.sched_getaffinity(0)),
}
Path(sys.argv[1]).write_text(json.dumps(found))
if sys.argv[2] == "sleep":
    import time; time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def fork(tmp_path, monkeypatch):
    (tmp_path / "site_probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    one = SiteFork()
    yield one
    with contextlib.suppress(OSError):
        one._socket.shutdown(socket.SHUT_RDWR)
    one._process.wait(60)
    one._socket.close()


def start(fork: SiteFork, tmp_path: Path, name: str, then: object, *custom: Path) -> Any:
    command = [sys.executable, "-m", "site_probe", str(tmp_path / name), str(then)]
    path = os.pathsep.join(map(str, (tmp_path, *sys.path, *custom)))
    return fork.start(command, {"PATH": os.environ["PATH"], "PYTHONPATH": path, "OWN": name})


def wait_for(path: Path) -> dict[str, Any]:
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
    return json.loads(path.read_text())


def test_a_fork_is_as_a_new_process(fork, tmp_path):
    processes = [start(fork, tmp_path, name, code) for name, code in (("a", 0), ("b", 3))]
    assert [process.wait(60) for process in processes] == [0, 3]
    assert [process.poll() for process in processes] == [0, 3]
    one, other = (wait_for(tmp_path / name) for name in "ab")
    assert one["name"] == "__main__"
    assert one["arguments"] == [str(tmp_path / "a"), "0"]
    assert one["folder"] == one["first"] == str(tmp_path)
    assert one["environment"].keys() - {"LC_CTYPE"} == {"PATH", "PYTHONPATH", "OWN"}
    assert other["environment"]["OWN"] == "b"
    assert one["leads"]
    assert one["imported"], "else nothing is saved"
    assert one["drawn"] != other["drawn"], "noise of two sites would be the same"
    assert one["cores"] == len(os.sched_getaffinity(0))


def test_a_jobs_own_code_comes_before_what_is_imported(fork, tmp_path):
    package = tmp_path / "custom" / "pt_peft"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert brings_imported([str(package.parent)])
    assert not brings_imported([str(tmp_path)])
    process = start(fork, tmp_path, "a", 0, package.parent)
    assert process.wait(60) == 0
    assert not wait_for(tmp_path / "a")["imported"]


def test_signals_and_waits(fork, tmp_path):
    process = start(fork, tmp_path, "a", "sleep")
    wait_for(tmp_path / "a")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == process.returncode == -15
    process.kill()  # an end is the end
    another = start(fork, tmp_path, "b", "sleep")
    another.kill()
    assert another.wait(10) == -9


def test_it_ends_with_the_simulator(fork):
    fork._socket.shutdown(socket.SHUT_RDWR)
    assert fork._process.wait(60) == 0


def test_without_it_processes_start_anew(fork, tmp_path):
    process = start(fork, tmp_path, "a", "sleep")
    wait_for(tmp_path / "a")
    fork._process.kill()
    fork._process.wait()
    assert process.wait(10) == -9
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(process.pid).wait(10)
    assert start(fork, tmp_path, "b", 0) is None
    starter = SiteStarter(fork)
    command = [sys.executable, "-m", PROGRAM, "--port", "9", "--help"]
    started = starter.Popen(command, shell=False, preexec_fn=os.setsid, env=dict(os.environ), stdout=subprocess.PIPE)
    assert isinstance(started, subprocess.Popen)
    assert b"--simulator_root" in started.communicate(timeout=60)[0]
    assert starter.is_running(9) is None


def test_the_starter_knows_its_processes(fork, capfd):
    starter = SiteStarter(fork)
    command = [sys.executable, "-m", PROGRAM, "--port", "9"]
    process = starter.Popen(command, shell=False, preexec_fn=os.setsid, env=dict(os.environ))
    assert process.wait(60) == 2, "FLARE's program, which lacks its arguments"
    assert starter.is_running(9) is False


def test_what_is_imported_is_light_and_whole():
    code = (
        "import importlib, sys, os; from pt_peft_flare.site_fork import COMPONENTS, PROGRAM\n"
        "for name in (PROGRAM, *COMPONENTS): importlib.import_module(name)\n"
        "print(sorted({'torch', 'timm', 'peft', 'monai', 'pandas', 'scipy', 'sklearn'} & sys.modules.keys()),"
        " len(os.listdir('/proc/self/task')))"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[] 1", "a fork of several threads may hang"
