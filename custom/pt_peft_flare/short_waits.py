"""Waits and work of FLARE that our jobs have no need of, left out."""

import os
import subprocess
import time

from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.simulator import simulator_runner

from pt_peft_flare.cores import leave_cores_to_host

_LOOK_S = 0.1
_GRACE_S = 0.1


def without_torch(communicator: WFCommServer) -> None:
    """Keeps `communicator` from importing torch, seconds and hundreds of megabytes, to end downloads of torch tensors: there are
    none, as ours travel as arrays.
    """
    communicator._cleanup_inflight_tensor_downloads = lambda fl_ctx: None


def hasten_simulation(fl_ctx: FLContext) -> None:
    """Lets the simulator see at once that its job has ended (it looks every 3 s), and its process end then (it sleeps for 3 s,
    for what sites in other places may still have to say); and start a site's process, which without a thread for each site it does
    for each task, without the second that it sleeps before and those between looks whether it is there. And without a fork, in
    which it might wait for ever.
    """
    fl_ctx.get_engine().server.check_engine_frequency = _LOOK_S
    shut_down = MainProcessMonitor._start_shutdown
    MainProcessMonitor._start_shutdown = lambda grace_s, cleanup_s: shut_down(_GRACE_S, cleanup_s)
    simulator_runner.time = _ShortSleeps
    simulator_runner.subprocess = _WithoutFork
    leave_cores_to_host()


class _ShortSleeps:
    """What the simulator uses of `time`."""

    time = staticmethod(time.time)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, _LOOK_S))


class _WithoutFork:
    """What the simulator uses of `subprocess`. It gives each site's process a function to run before its program, for which Python
    has to fork; and OpenBLAS, by which numpy multiplies, can lock up in a fork while another thread multiplies, as the server's
    does in an aggregation.
    """

    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def Popen(command: list[str], *, preexec_fn: object, **options: object) -> subprocess.Popen:
        assert preexec_fn is os.setsid
        return subprocess.Popen(command, start_new_session=True, **options)
