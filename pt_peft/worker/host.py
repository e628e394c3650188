"""The worker host imports torch, timm and peft, builds the model of a job, and forks a worker for each connection.

    python -m pt_peft.worker.host LISTENER FOLDER [WORK.json] [--shared] < pipe

``LISTENER`` is the descriptor of a listening socket, ``FOLDER`` the host's own folder, ``WORK.json`` what
`pt_peft.worker.prepared.prepare` takes. All sites that run on a machine in one simulation share the imports and their
memory; a FLARE client process needs no torch of its own. The host ends, with its workers, when its standard input does.

Where the sites compute on a GPU, or with ``--shared``, one fork answers all connections, see
`pt_peft.worker.shared_process`.
"""

import gc
import importlib
import json
import os
import queue
import select
import shutil
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from pt_peft.worker import frames
from pt_peft.worker.requests import Work
from pt_peft.worker.turns import Turns

SHARED = "--shared"
COMPUTING = ("train", "evaluate")
"""Requests that wait for a turn, see `pt_peft.worker.turns`."""


def main() -> None:
    """Serves until standard input ends."""
    arguments = [argument for argument in sys.argv[1:] if argument != SHARED]
    listener, folder = socket.socket(fileno=int(arguments[0])), Path(arguments[1])
    work_file = arguments[2] if len(arguments) > 2 else None
    _make_ready(work_file)
    from pt_peft.worker.prepared import computes_on_gpu
    from pt_peft.worker.shared_process import serve

    def fork_shared() -> int:
        """Forks the process that answers all users. Returns the end of a pipe that ends with it."""
        ended, alive = os.pipe()
        if os.fork() == 0:
            os.close(0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(listener, _work_of(work_file))
        os.close(alive)
        return ended

    shared = SHARED in sys.argv or computes_on_gpu(_work_of(work_file))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    ended = fork_shared() if shared else None
    while True:
        ready, _, _ = select.select([sys.stdin, listener if ended is None else ended], [], [])
        if sys.stdin in ready:
            shutil.rmtree(folder, ignore_errors=True)
            # The host leads its process group, see `host_process.WorkerHost`: this ends its workers and itself.
            os.killpg(0, signal.SIGKILL)
        if ended is not None:  # the shared process has died, perhaps for its memory
            os.close(ended)
            ended = None
            continue
        if shared:
            ended = fork_shared()
            continue
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

    importlib.import_module("pt_peft.worker.request_handler")
    torch.set_num_threads(1)  # threads do not survive a fork; workers set their own number
    work = _work_of(work_file)
    if work:
        prepare(work)
    gc.freeze()  # all objects so far stay in the memory that the workers share
    gc.enable()


def _work_of(work_file: str | None) -> Work | None:
    return json.loads(Path(work_file).read_text(encoding="utf-8")) if work_file else None


def _work(connection: socket.socket, folder: Path) -> None:
    """Answers the requests of one connection, in a fork."""
    import torch

    from pt_peft.worker.answering import answer, open_log, work_for
    from pt_peft.worker.request_handler import RequestHandler

    frames.send(connection, {"pid": os.getpid()})
    received: queue.SimpleQueue[frames.Frame] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, received), daemon=True).start()
    handler, turns = RequestHandler(), Turns(folder)
    while True:
        message, tensors = received.get()
        if message["request"] == "open":
            work_for(message["threads"], open_log(message["run_dir"]))
        try:
            with turns.turn() if message["request"] in COMPUTING else nullcontext():
                reply, result = answer(handler, message, tensors)
        except torch.AcceleratorError:
            os._exit(1)
        frames.send(connection, reply, result)


def _read(connection: socket.socket, received: queue.SimpleQueue[frames.Frame]) -> None:
    """Reads requests even while one is worked on, so that the worker ends with its user."""
    try:
        while True:
            received.put(frames.receive(connection))
    finally:
        # What cannot be read ends the worker too: it would never answer.
        os._exit(0)


if __name__ == "__main__":
    main()
