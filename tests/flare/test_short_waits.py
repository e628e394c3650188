"""FLARE is built as `short_waits` takes it to be: another version would be slow, and nobody would know why."""

import inspect
import os
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.simulator import simulator_runner
from nvflare.private.fed.server.fed_server import FederatedServer

from pt_peft_flare import short_waits
from pt_peft_flare.flare_internals import GOODBYES
from pt_peft_flare.short_waits import SiteStarter, _ShortSleeps, end_without_torch
from pt_peft_flare.site_processes import SiteProcess

OF_MULTIPROCESSING = {"start", "join", "exitcode"}
"""What FLARE uses of another object that it calls ``process``."""


def test_what_the_simulator_uses_of_time_is_there():
    used = set(re.findall(r"\btime\.(\w+)", inspect.getsource(simulator_runner)))
    assert "sleep" in used
    assert all(callable(getattr(_ShortSleeps(), name)) for name in used)
    started = time.monotonic()
    _ShortSleeps().sleep(3)
    assert time.monotonic() - started < 1


def test_a_sites_process_starts_while_the_server_multiplies():
    """With FLARE's own way this hangs nearly at once."""
    source = inspect.getsource(simulator_runner)
    used = set(re.findall(r"\bsubprocess\.(\w+)", source))
    assert used == {"Popen", "TimeoutExpired"}, "another function could fork too"
    assert all(hasattr(SiteStarter(), name) for name in used)
    assert source.count("subprocess.Popen(") == source.count("preexec_fn=os.setsid") == 1
    assert set(re.findall(r"\bprocess\.(\w+)", source)) - OF_MULTIPROCESSING <= {*dir(SiteProcess), "returncode", "pid"}
    code = (
        "import os, threading; import numpy as np; from pt_peft_flare.short_waits import SiteStarter\n"
        "one, stop = np.ones((600, 600), np.float32), threading.Event()\n"
        "def multiply():\n    while not stop.is_set(): one @ one\n"
        "thread = threading.Thread(target=multiply); thread.start()\n"
        "start = SiteStarter().Popen\n"
        "processes = [start(['true'], shell=False, preexec_fn=os.setsid) for _ in range(50)]\n"
        "stop.set(); thread.join(); print({process.wait() for process in processes})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "{0}", run.stderr
    process = SiteStarter().Popen(["sleep", "60"], preexec_fn=os.setsid)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.wait()


def test_another_function_before_the_program_is_run_as_ever():
    assert SiteStarter().Popen(["true"], preexec_fn=lambda: os._exit(3)).wait() == 3


def test_the_server_looks_as_often_as_it_is_told():
    assert "time.sleep(self.check_engine_frequency)" in inspect.getsource(FederatedServer)


def test_the_end_of_a_job_imports_no_torch():
    source = inspect.getsource(WFCommServer._cleanup_inflight_tensor_downloads)
    assert "app_opt.pt" in source  # else there is nothing to prevent
    communicator: Any = WFCommServer()
    end_without_torch(communicator)
    assert "_cleanup_inflight_tensor_downloads" in inspect.getsource(WFCommServer.finalize_run)
    assert communicator._cleanup_inflight_tensor_downloads(None) is None


def test_a_sites_process_sleeps_no_more_than_it_must():
    code = (
        "from nvflare.private.fed.client import client_runner\n"
        "from nvflare.widgets.fed_event import ClientFedEventRunner\n"
        "from pt_peft_flare.short_waits import hasten_site; import inspect, time\n"
        "assert 'time.sleep(0.5)' in inspect.getsource(client_runner.ClientRunner.init_run)\n"
        "assert ClientFedEventRunner().queue_empty_period == 2.0\n"
        "hasten_site(); started = time.monotonic(); client_runner.time.sleep(0.5)\n"
        "print(time.monotonic() - started < 0.4, ClientFedEventRunner().queue_empty_period)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["True", "0.0"], run.stderr


@pytest.mark.parametrize("lost", [False, True])
def test_the_simulator_takes_no_leave_of_processes_that_have_ended(monkeypatch, lost):
    assert "if self.agents:" in inspect.getsource(CoreCell)
    cell = SimpleNamespace(agents={"site-1.simulate_job": None}, agent_lock=threading.Lock())
    monkeypatch.setattr(CoreCell, "ALL_CELLS", {"server": cell})
    graces: list[float] = []
    monkeypatch.setattr(
        MainProcessMonitor,
        "_start_shutdown",
        lambda shutdown_grace_time, cleanup_grace_time: graces.append(shutdown_grace_time),
    )
    if lost:
        monkeypatch.setattr(GOODBYES, "names", ("nvflare.gone:Gone",))
    short_waits._shorten_grace()
    MainProcessMonitor._start_shutdown(3, 6)
    assert graces == [0.1]
    assert len(cell.agents) == lost
