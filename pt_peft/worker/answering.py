"""How a worker answers a request, whichever process it is in, and where what it prints goes."""

import errno
import logging
import os
import sys
import traceback
from typing import Any

import torch

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError, Tensors
from pt_peft.reasons import Reason
from pt_peft.worker import frames
from pt_peft.worker.handle import WorkerError
from pt_peft.worker.request_handler import Reply, RequestHandler


def answer(handler: RequestHandler, message: dict[str, Any], tensors: Tensors) -> Reply:
    """What `handler` replies to a request, or the error that its user is to raise.

    Raises:
        torch.AcceleratorError: after which a process cannot use its GPU any more.
    """
    try:
        return handler.requests[message["request"]](message, tensors)
    except (UserError, TensorError) as error:
        return {"error": frames.error_fields(error)}, {}
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, torch.AcceleratorError):
            raise
        return {"error": frames.error_fields(WorkerError(_told(error), _reason_of(error)))}, {}


def _told(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return (
            f"the GPU's memory, or the site's share of it, is too small for this job ({_first_sentence(error)}); a "
            "smaller training.batch_size, or a larger 'gpu_memory_share' in site.json, would be right"
        )
    return f"{type(error).__name__}: {error}"


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].strip()


def _reason_of(error: Exception) -> Reason:
    """What others are told of an error that nobody has foreseen."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return reasons.OutOfMemory()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return reasons.DiskFull()
    return reasons.Internal()


def open_log(run_dir: str) -> int:
    """The descriptor of a worker's log in `run_dir`, which is made if it is missing."""
    os.makedirs(run_dir, exist_ok=True)
    return os.open(os.path.join(run_dir, "worker.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def work_for(threads: int, log: int) -> None:
    """Sets torch's threads, and sends all output of this process to `log`."""
    torch.set_num_threads(threads)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s", force=True)
