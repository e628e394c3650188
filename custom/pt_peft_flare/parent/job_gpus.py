"""Which GPUs of a site a job gets, in FLARE's place; runs in the site's parent process."""

import os
import threading
from collections import Counter
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.resource_consumers.gpu_resource_consumer import GPUResourceConsumer
from nvflare.app_common.resource_managers.gpu_resource_manager import GPUResourceManager

from pt_peft.environment import VISIBLE
from pt_peft_flare.flare_internals import JOB_GPUS, WHOLE_GPUS

_lock = threading.Lock()
_starting = threading.local()


class JobGpus(GPUResourceManager):
    """Gives a job GPUs that no other job has.

    A job that says how much of their memory it needs (``mem_per_gpu_in_GiB``) shares them with others of that kind. To
    FLARE's own manager a job that says nothing needs none: it gives each such job the site's first GPUs.
    """

    def __init__(self, **arguments: Any) -> None:
        """Takes the arguments of `GPUResourceManager`."""
        WHOLE_GPUS.require()
        super().__init__(**arguments)
        self._jobs: Counter[int] = Counter()
        """By GPU the number of jobs that have it."""
        self._whole: set[int] = set()
        """GPUs that one job has whole."""

    def allocate_resources(
        self, resource_requirement: dict[str, Any], token: str, fl_ctx: FLContext
    ) -> dict[int, float]:
        """Gives the GPUs that were reserved under a token to the job that this thread starts next."""
        take_gpus()  # of a job that could not be started
        return super().allocate_resources(resource_requirement, token, fl_ctx)

    def _check_required_resource_available(self, resource_requirement: dict[str, Any]) -> bool:
        return len(self._free(resource_requirement)) >= resource_requirement.get(self.num_gpu_key, 0)

    def _reserve_resource(self, resource_requirement: dict[str, Any]) -> dict[int, float]:
        memory: float = resource_requirement.get(self.gpu_mem_key, 0)
        given = self._free(resource_requirement)[: resource_requirement.get(self.num_gpu_key, 0)]
        for gpu in given:
            self.resources[gpu].memory -= memory
        self._jobs.update(given)
        if not memory:
            self._whole.update(given)
        return dict.fromkeys(given, memory)

    def _deallocate(self, resources: dict[int, float]) -> None:
        super()._deallocate(resources)
        self._jobs.subtract(resources.keys())
        self._whole.difference_update(resources)

    def _free(self, requirement: dict[str, Any]) -> list[int]:
        """GPUs that can be given to a job."""
        memory: float = requirement.get(self.gpu_mem_key, 0)
        others = [gpu for gpu in self.resources if gpu not in self._whole]
        if memory:
            return [gpu for gpu in others if self.resources[gpu].memory >= memory]
        return [gpu for gpu in others if not self._jobs[gpu]]


class OneJobsGpus(GPUResourceConsumer):
    """Keeps a job's GPUs for the launcher that starts its process next, in the same thread.

    FLARE's own consumer leaves them in the environment of the site's process, from which all that it starts later has
    them too.
    """

    def consume(self, resources: dict[int, float]) -> None:
        """Takes GPUs by number, each with its memory in GiB. Raises RuntimeError if they are not there."""
        if not JOB_GPUS.usable():
            super().consume(resources)
            return
        with _lock:
            before = os.environ.get(VISIBLE)
            try:
                super().consume(resources)
                _starting.gpus = os.environ[VISIBLE]
            finally:
                os.environ.pop(VISIBLE, None)
                if before is not None:
                    os.environ[VISIBLE] = before


def take_gpus() -> str | None:
    """The GPUs of the job that this thread is about to start, as `VISIBLE` has them; None if it was given none."""
    return _starting.__dict__.pop("gpus", None)
