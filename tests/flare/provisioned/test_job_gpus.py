"""Which GPUs of a site its jobs get, and that the process of each job sees its own."""

import os
import shlex
import subprocess
import sys
import threading
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle
from nvflare.app_common.resource_consumers import gpu_resource_consumer

from pt_peft.environment import VISIBLE
from pt_peft_flare.flare_internals import JOB_GPUS
from pt_peft_flare.parent.job_gpus import JobGpus, OneJobsGpus, take_gpus
from pt_peft_flare.parent.restarting_launcher import RestartingJobLauncher

ONE = {"num_of_gpus": 1}


class Site:
    """A site with two GPUs, as FLARE asks it before a job."""

    def __init__(self, memory: float):
        self.manager = JobGpus(num_of_gpus=2, mem_per_gpu_in_GiB=memory, ignore_host=True)
        self.jobs: dict[str, tuple[dict[int, float], str]] = {}

    def start(self, job: str, **asked: float) -> list[int] | None:
        enough, token = self.manager.check_resources(asked, FLContext())
        if not enough:
            return None
        self.jobs[job] = self.manager.allocate_resources(asked, token, FLContext()), token
        return [*self.jobs[job][0]]

    def end(self, job: str) -> None:
        self.manager.free_resources(*self.jobs.pop(job), FLContext())


@pytest.mark.parametrize("memory", [0, 16])
def test_a_job_has_its_gpus_to_itself(memory):
    site = Site(memory)
    assert site.start("first", **ONE) == [0]
    assert site.start("second", **ONE) == [1]
    assert site.start("third", **ONE) is None
    assert site.start("without") == []
    site.end("first")
    assert site.start("both", num_of_gpus=2) is None
    assert site.start("third", **ONE) == [0]


def test_jobs_that_say_what_memory_they_need_share():
    site = Site(16)
    assert site.start("first", num_of_gpus=1, mem_per_gpu_in_GiB=10) == [0]
    assert site.start("second", num_of_gpus=1, mem_per_gpu_in_GiB=6) == [0]
    assert site.start("whole", **ONE) == [1]
    assert site.start("third", num_of_gpus=1, mem_per_gpu_in_GiB=1) is None
    site.end("first")
    assert site.start("another whole", **ONE) is None
    site.end("second")
    assert site.start("another whole", **ONE) == [0]


def test_what_was_reserved_and_is_not_taken_is_free_again():
    site = Site(0)
    _, token = site.manager.check_resources(ONE, FLContext())
    site.manager.cancel_resources(ONE, token, FLContext())
    assert site.start("first", num_of_gpus=2) == [0, 1]


@pytest.fixture
def consumer(monkeypatch) -> OneJobsGpus:
    """On a machine that has three GPUs of 16 GiB."""
    monkeypatch.setattr(gpu_resource_consumer, "get_host_gpu_ids", lambda: [0, 1, 2])
    monkeypatch.setattr(gpu_resource_consumer, "get_host_gpu_memory_free", lambda unit: [16 * 1024] * 3)
    for name in (VISIBLE, "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "as before")
    take_gpus()
    return OneJobsGpus()


def test_the_sites_own_environment_stays_and_another_thread_has_another_job(consumer):
    consumer.consume({2: 8, 0: 8})
    others = []
    other = threading.Thread(target=lambda: others.append(take_gpus()))
    other.start()
    other.join()
    assert others == [None]
    assert os.environ[VISIBLE] == "as before"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert [take_gpus(), take_gpus()] == ["2,0", None]
    with pytest.raises(RuntimeError, match="GPU ID 3 does not exist"):
        consumer.consume({3: 0})
    assert os.environ[VISIBLE] == "as before"


def test_the_gpus_of_a_job_that_did_not_start_are_not_the_next_jobs(consumer):
    consumer.consume({2: 0})
    Site(0).start("next")
    assert take_gpus() is None


def test_with_another_flare_a_site_gives_gpus_as_flare_does(consumer, monkeypatch):
    monkeypatch.setattr(JOB_GPUS, "names", ("nvflare.gone:Gone",))
    consumer.consume({2: 0})
    assert os.environ[VISIBLE] == "2"
    assert take_gpus() is None


def test_a_jobs_process_sees_its_gpus_also_when_it_is_started_again(consumer, monkeypatch):
    commands: list[list[str]] = []
    codes = ["import os; os.kill(os.getpid(), 9)", "pass", "pass"]

    def launch(self: ClientProcessJobLauncher, job_meta: dict[str, Any], fl_ctx: FLContext) -> ProcessHandle:
        commands.append(shlex.split(self.get_command(job_meta, fl_ctx)))
        return ProcessHandle(process=subprocess.Popen([sys.executable, "-c", codes.pop(0)]))

    monkeypatch.setattr(ClientProcessJobLauncher, "launch_job", launch)

    def start() -> None:
        fl_ctx = FLContext()
        given = {JobProcessArgs.EXE_MODULE: ("-m", "some.module"), JobProcessArgs.WORKSPACE: ("-m", "/kit")}
        fl_ctx.set_prop(FLContextKey.JOB_PROCESS_ARGS, given)
        RestartingJobLauncher().launch_job({}, fl_ctx).wait()

    consumer.consume({1: 0})
    start()
    start()  # a job that asks for no GPU
    assert [command[:2] == ["/usr/bin/env", f"{VISIBLE}=1"] for command in commands] == [True, True, False]
    assert commands[2][0] == commands[0][2] == sys.executable


def test_what_such_a_command_becomes():
    """The process that starts it can still end it: its number stays."""
    code = f"import os; print(os.getpid(), os.environ['{VISIBLE}'])"
    words = ["/usr/bin/env", f"{VISIBLE}=1", sys.executable, "-c", code]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert started.communicate()[0] == f"{started.pid} 1\n"
