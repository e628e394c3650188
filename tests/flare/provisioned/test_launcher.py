"""A job's process that dies is started again, until it has died too often."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle

from pt_peft_flare.parent.job_process import ending_with_us, in_lasting_thread
from pt_peft_flare.parent.restarting_launcher import RestartingHandle, RestartingJobLauncher
from pt_peft_flare.parent.server_launcher import ServerJobLauncher


def program(code):
    return ProcessHandle(process=subprocess.Popen([sys.executable, "-c", code], start_new_session=True))


DIES = "import os; os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(
    ("code", "expected"), [("pass", JobReturnCode.SUCCESS), ("exit(1)", JobReturnCode.EXECUTION_ERROR)]
)
def test_an_end_of_its_own_is_final(code, expected):
    starts = []
    handle = RestartingHandle(lambda: starts.append(1) or program(code), 3)
    handle.wait()
    assert handle.poll() == expected
    assert len(starts) == 1


def test_started_again_after_a_kill():
    codes = [DIES, DIES, "pass"]
    handle = RestartingHandle(lambda: program(codes.pop(0)), 3)
    handle.wait()
    assert handle.poll() == JobReturnCode.SUCCESS
    assert not codes


def test_after_too_many_deaths_the_site_alone_is_out():
    starts = []
    handle = RestartingHandle(lambda: starts.append(1) or program(DIES), 2)
    handle.wait()
    assert len(starts) == 3
    assert handle.poll() == JobReturnCode.UNKNOWN


def test_terminated_is_not_started_again():
    starts = []
    handle = RestartingHandle(lambda: starts.append(1) or program("import time; time.sleep(60)"), 2)
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    assert handle.poll() == JobReturnCode.UNKNOWN  # FLARE's word for one that runs
    handle.terminate()
    waiting.join(10)
    assert not waiting.is_alive()
    assert len(starts) == 1


STARTER = """
import subprocess, shlex, time
from pt_peft_flare.parent.job_process import ending_with_us, in_lasting_thread
child = in_lasting_thread(subprocess.Popen, shlex.split(ending_with_us("{command}")))
print(child.pid, flush=True)
time.sleep(60)
"""


def ends(pid, seconds):
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("ready_s", [0.0, 1.0])
def test_a_job_process_ends_with_its_parent_also_while_it_starts(ready_s):
    command = f"{sys.executable} -c 'import time; time.sleep(60)'"
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER.format(command=command)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout
    child = int(starter.stdout.readline())
    time.sleep(ready_s)
    assert psutil.Process(child).is_running()
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    assert ends(child, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_job_process_outlives_the_thread_that_asked_for_it():
    started = []

    def start():
        command = ending_with_us(f"{sys.executable} -c 'import time; time.sleep(60)'")
        started.append(in_lasting_thread(subprocess.Popen, shlex.split(command)))

    asking = threading.Thread(target=start)
    asking.start()
    asking.join()
    (process,) = started
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_job_process_whose_parent_has_gone_before_it_looked_does_nothing():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pt_peft_flare.parent.job_process",
            str(os.getpid() + 1),
            sys.executable,
            "-c",
            "print(1)",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert not done.stdout


def test_both_launchers_start_processes_that_end_with_them(monkeypatch):
    for launcher in (RestartingJobLauncher(), ServerJobLauncher()):
        base: Any = type(launcher).__mro__[1]
        monkeypatch.setattr(base, "get_command", lambda self, job_meta, fl_ctx: "python -m job")
        fl_ctx = FLContext()
        fl_ctx.set_prop(FLContextKey.JOB_PROCESS_ARGS, {}, private=True, sticky=False)
        words = launcher.get_command({}, fl_ctx).split()
        assert words[1:] == ["-m", "pt_peft_flare.parent.job_process", str(os.getpid()), "python", "-m", "job"]
