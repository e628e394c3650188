"""That FLARE is built as `short_waits` takes it to be: a version that is not would be slow, and nobody would know why."""

import inspect
import os
import re
import subprocess
import sys
import time

from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.simulator import simulator_runner
from nvflare.private.fed.server.fed_server import FederatedServer

from pt_peft_flare.short_waits import _ShortSleeps, _WithoutFork, without_torch


def test_what_the_simulator_uses_of_time_is_there():
    used = set(re.findall(r"\btime\.(\w+)", inspect.getsource(simulator_runner)))
    assert {"sleep"} <= used <= {name for name in vars(_ShortSleeps) if not name.startswith("_")}
    started = time.monotonic()
    _ShortSleeps.sleep(3)
    assert time.monotonic() - started < 1


def test_a_sites_process_starts_while_the_server_multiplies():
    """With FLARE's own way this hangs nearly at once."""
    source = inspect.getsource(simulator_runner)
    assert set(re.findall(r"\bsubprocess\.(\w+)", source)) <= {
        name for name in vars(_WithoutFork) if not name.startswith("_")
    }
    assert source.count("subprocess.Popen(") == source.count("preexec_fn=os.setsid") == 1
    code = (
        "import os, threading; import numpy as np; from pt_peft_flare.short_waits import _WithoutFork\n"
        "one, stop = np.ones((600, 600), np.float32), threading.Event()\n"
        "def multiply():\n    while not stop.is_set(): one @ one\n"
        "thread = threading.Thread(target=multiply); thread.start()\n"
        "processes = [_WithoutFork.Popen(['true'], shell=False, preexec_fn=os.setsid) for _ in range(50)]\n"
        "stop.set(); thread.join(); print({process.wait() for process in processes})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "{0}", run.stderr
    process = _WithoutFork.Popen(["sleep", "60"], preexec_fn=os.setsid)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.wait()


def test_the_waits_are_where_they_were():
    assert list(inspect.signature(MainProcessMonitor._start_shutdown).parameters) == [
        "shutdown_grace_time",
        "cleanup_grace_time",
    ]
    assert "time.sleep(self.check_engine_frequency)" in inspect.getsource(FederatedServer)


def test_the_end_of_a_job_imports_no_torch():
    source = inspect.getsource(WFCommServer._cleanup_inflight_tensor_downloads)
    assert "app_opt.pt" in source  # else there is nothing to prevent
    communicator = WFCommServer()
    without_torch(communicator)
    assert "_cleanup_inflight_tensor_downloads" in inspect.getsource(WFCommServer.finalize_run)
    assert communicator._cleanup_inflight_tensor_downloads(None) is None
