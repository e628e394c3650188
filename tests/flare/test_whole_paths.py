"""Paths with blanks, quotes and hashes, which FLARE's commands are split at."""

import inspect
import shlex
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.private.fed.app.simulator import simulator_runner

from pt_peft_flare import whole_paths
from pt_peft_flare.__main__ import main
from pt_peft_flare.flare_internals import SITE_START_WORDS
from pt_peft_flare.kits import _quote
from pt_peft_flare.parent.restarting_launcher import RestartingJobLauncher
from pt_peft_flare.parent.server_launcher import ServerJobLauncher
from pt_peft_flare.whole_paths import simulate_at_any_path

PATHS = ["/home/me/a b", "/it's #1", '/a "b" \\c', "/plain"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("python", ["/usr/bin/python3", "/home/me/a b/.venv/bin/python"])
def test_a_simulated_sites_command(path, python, monkeypatch):
    monkeypatch.setattr(simulator_runner, "shlex", shlex)
    monkeypatch.setattr(sys, "executable", python)
    workspace = SimpleNamespace(get_root_dir=lambda: f"{path}/server")
    context: Any = SimpleNamespace(get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace))
    simulate_at_any_path(context)
    words = [python, "-m", "worker", "-o", f"{path}/site-1", "--simulator_root", path, "--gpu", "0"]
    assert simulator_runner.shlex.split(" ".join(words), True) == words


def test_what_the_simulator_uses_of_shlex():
    source = inspect.getsource(simulator_runner)
    assert source.count("shlex.") == source.count("shlex.split(command, True)") == 1


def test_another_flare_keeps_its_own_way(monkeypatch):
    monkeypatch.setattr(SITE_START_WORDS, "names", ("nvflare.gone:Gone",))
    monkeypatch.setattr(simulator_runner, "shlex", shlex)
    context: Any = None
    simulate_at_any_path(context)
    assert simulator_runner.shlex is shlex


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("launcher", [RestartingJobLauncher, ServerJobLauncher])
def test_a_job_process_command(path, launcher, monkeypatch):
    monkeypatch.setattr(sys, "executable", f"{path}/.venv/bin/python")
    monkeypatch.setattr(whole_paths.sys, "executable", sys.executable)
    context = FLContext()
    given = {
        JobProcessArgs.EXE_MODULE: ("-m", "some.module"),
        JobProcessArgs.WORKSPACE: ("-m", path),
        JobProcessArgs.STARTUP_DIR: ("-w", f"{path}/startup"),
        JobProcessArgs.APP_ROOT: ("-r", f"{path}/1234/app"),
        JobProcessArgs.OPTIONS: ("--set", "secure_train=true org=a"),
    }
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, given)
    words = shlex.split(launcher().get_command({}, context), True)
    assert words[0] == words[4] == sys.executable
    assert words[words.index("some.module") + 1 :][:2] == ["-m", path]
    assert words[-3:] == ["--set", "secure_train=true", "org=a"]
    assert (f"{path}/startup" in words) == (launcher is RestartingJobLauncher)
    assert (f"{path}/1234/app" in words) == (launcher is ServerJobLauncher)


def test_a_kit_starts_from_a_folder_with_a_blank(tmp_path):
    startup = tmp_path / "a b" / "site-1" / "startup"
    startup.mkdir(parents=True)
    head = 'DIR="$( cd "$( dirname "${BASH_SOURCE[0]}" )" >/dev/null 2>&1 && pwd )"\n'
    start, started = startup / "start.sh", startup / "sub_start.sh"
    start.write_text(head + "    $DIR/sub_start.sh &\nwait $!\n")
    started.write_text("#!/bin/bash\necho started\n")
    started.chmod(0o755)
    _quote(start)
    assert subprocess.run(["bash", str(start)], capture_output=True, text=True).stdout == "started\n"
    admin = startup / "fl_admin.sh"
    admin.write_text(head + "mkdir -p $DIR/../transfer\n")
    _quote(admin)
    subprocess.run(["bash", str(admin)], check=True)
    assert (startup.parent / "transfer").is_dir()


def test_the_command_that_is_printed_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my job's"
    assert main(["job", "lora", "--out", str(folder)]) == 0
    assert shlex.split(capsys.readouterr().out) == ["nvflare", "simulator", str(folder), "-n", "2", "-t", "2"]
