"""A job's process that dies is started again, until it has died too often."""

import subprocess
import sys
import threading

import pytest
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle

from pt_peft_flare.parent.restarting_launcher import RestartingHandle


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
