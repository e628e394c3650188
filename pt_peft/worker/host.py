"""The worker host imports torch, timm and peft, builds the model of a job, and forks a worker for each connection.

    python -m pt_peft.worker.host LISTENER FOLDER [WORK.json] < pipe

``LISTENER`` is the descriptor of a listening socket, ``FOLDER`` the host's own folder, ``WORK.json`` what
`pt_peft.worker.prepared.prepare` takes. All sites that run on a machine in one simulation share the imports and their
memory; a FLARE client process needs no torch of its own. The host ends, with its workers, when its standard input does.
"""

import errno
import gc
import importlib
import json
import logging
import os
import queue
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
from contextlib import nullcontext
from pathlib import Path

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError
from pt_peft.reasons import Reason
from pt_peft.worker import frames
from pt_peft.worker.handle import WorkerError
from pt_peft.worker.requests import Work
from pt_peft.worker.turns import Turns

COMPUTING = ("train", "evaluate")
"""Requests that wait for a turn, see `pt_peft.worker.turns`."""


def main() -> None:
    """Serves until standard input ends."""
    listener, folder = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    _make_ready(sys.argv[3] if len(sys.argv) > 3 else None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(folder, ignore_errors=True)
            # The host leads its process group, see `host_process.WorkerHost`: this ends its workers and itself.
            os.killpg(0, signal.SIGKILL)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _work(connection, folder)
            os._exit(0)
        connection.close()


def _make_ready(work_file: str | None) -> None:
    """Does once what each worker would spend seconds on."""
    gc.disable()  # a collection looks through all modules
    import torch

    from pt_peft.worker.prepared import prepare

    for name in ("pt_peft.worker.request_handler", "pt_peft.data.augmentation"):
        importlib.import_module(name)
    torch.set_num_threads(1)  # threads do not survive a fork; workers set their own number
    if work_file:
        work: Work = json.loads(Path(work_file).read_text(encoding="utf-8"))
        prepare(work)
    gc.freeze()  # all objects so far stay in the memory that the workers share
    gc.enable()


def _work(connection: socket.socket, folder: Path) -> None:
    """Answers the requests of one connection, in a fork."""
    from pt_peft.worker.request_handler import RequestHandler

    frames.send(connection, {"pid": os.getpid()})
    received: queue.SimpleQueue[frames.Frame] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, received), daemon=True).start()
    handler, turns = RequestHandler(), Turns(folder)
    while True:
        message, tensors = received.get()
        if message["request"] == "open":
            _prepare_process(message["threads"], message["run_dir"])
        try:
            with turns.turn() if message["request"] in COMPUTING else nullcontext():
                reply, result = handler.requests[message["request"]](message, tensors)
        except (UserError, TensorError) as error:
            reply, result = {"error": frames.error_fields(error)}, {}
        except Exception as error:
            traceback.print_exc()
            broken = WorkerError(f"{type(error).__name__}: {error}", _reason_of(error))
            reply, result = {"error": frames.error_fields(broken)}, {}
        frames.send(connection, reply, result)


def _reason_of(error: Exception) -> Reason:
    """What others are told of an error that nobody has foreseen."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return reasons.OutOfMemory()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return reasons.DiskFull()
    return reasons.Internal()


def _read(connection: socket.socket, received: queue.SimpleQueue[frames.Frame]) -> None:
    """Reads requests even while one is worked on, so that the worker ends with its user."""
    try:
        while True:
            received.put(frames.receive(connection))
    finally:
        # What cannot be read ends the worker too: it would never answer.
        os._exit(0)


def _prepare_process(threads: int, run_dir: str) -> None:
    """Sets torch's threads, and sends all output to the log in `run_dir`."""
    import torch

    torch.set_num_threads(threads)
    os.makedirs(run_dir, exist_ok=True)
    log_file = os.open(os.path.join(run_dir, "worker.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s", force=True)


if __name__ == "__main__":
    main()
