"""Starts the workers that run cells: processes of this machine, or a Dask cluster that is there already."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from dask import config
from distributed import Client, LocalCluster

from benchmark.sweep.records import Engine
from benchmark.sweep.suite import Suite
from pt_peft.errors import UserError

HOST_GB, SITE_GB, LOOP_GB = 1.5, 0.8, 1.5
"""Memory in GB (10^9 bytes) that a cell needs: FLARE's processes, each of its sites, or the plain loop."""
CONNECT_S = 30
"""Seconds that a scheduler has to answer."""
MALLOC = {"MALLOC_TRIM_THRESHOLD_": 2**28, "MALLOC_MMAP_THRESHOLD_": 2**25}
"""Free memory that a worker process keeps, and the size from which it is given back all the same, bytes.

Dask gives all of it back by default, and once the first is set, glibc does so from 128 kB on: either doubles the time
of training on a CPU."""
DEATHS = 1
"""How often the worker of a cell may die before the cell counts as failed."""


def most_jobs(suite: Suite, engine: Engine) -> int:
    """How many cells of `suite` the free memory is enough for at once, at least one."""
    sites = max(len(task.sites) for task in suite.data.values())
    gigabytes = HOST_GB + SITE_GB * sites if engine == "flare" else LOOP_GB
    return max(1, int(psutil.virtual_memory().available / 1e9 // gigabytes))


def default_jobs(suite: Suite, engine: Engine) -> int:
    """How many cells of `suite` this machine has cores and free memory for at once, at least one."""
    sites = max(len(task.sites) for task in suite.data.values())
    cores = len(os.sched_getaffinity(0))
    threads = min(sites, cores) if engine == "flare" else 1
    return max(1, min(cores // threads, most_jobs(suite, engine)))


@contextmanager
def workers(jobs: int, address: str | None) -> Iterator[Client]:
    """Opens a client of the scheduler at `address`, or of `jobs` worker processes of this machine, one thread each.

    Raises:
        UserError: if no scheduler answers at `address`.
    """
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        # Where a machine sleeps, or a sweep is halted for a while, workers are silent and not dead. Of those that die
        # their nannies tell.
        "distributed.scheduler.worker-ttl": None,
        "distributed.worker.memory.pause": False,
        **{f"distributed.nanny.pre-spawn-environ.{name}": nbytes for name, nbytes in MALLOC.items()},
    }
    with config.set(settings):
        if address is None:
            with (
                LocalCluster(
                    n_workers=jobs, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
                ) as cluster,
                Client(cluster) as client,
            ):
                yield client
            return
        try:
            client = Client(address, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster: no scheduler of Dask answers at '{address}' ({error}).") from None
        with client:
            yield client
