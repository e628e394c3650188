"""The worker host: imports torch, timm and peft once, builds the model of a job, and forks a worker for each connection.

    python -m pt_peft.worker.host LISTENER FOLDER [WORK.json] < pipe

``LISTENER`` is the descriptor of a listening socket, ``FOLDER`` the host's own, ``WORK.json`` what `pt_peft.worker.prepared.prepare`
takes. All sites that run on a machine in one simulation share the imports and their memory; a FLARE client process needs no
torch of its own. The host ends, with its workers, when its standard input does.
"""

import gc
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

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError
from pt_peft.worker import frames
from pt_peft.worker.turns import Turns

COMPUTING = ("train", "evaluate")
"""Requests that take a turn."""


def main() -> None:
    """Serves until standard input ends."""
    listener, folder = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    _make_ready(sys.argv[3] if len(sys.argv) > 3 else None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(folder, ignore_errors=True)
            # The host leads its process group, see `client.WorkerHost`; this ends its workers and itself.
            os.killpg(0, signal.SIGKILL)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _work(connection, folder)
            os._exit(0)
        connection.close()


def _make_ready(work: str | None) -> None:
    """What each worker would spend seconds on."""
    gc.disable()  # it looks through all modules time and again
    import torch

    import pt_peft.worker.session
    from pt_peft.worker.prepared import prepare

    torch.set_num_threads(1)  # threads do not survive a fork; workers set their own number
    content = json.loads(Path(work).read_text(encoding="utf-8")) if work else None
    if content is None or content["experiment"]["data"]["augment"]:
        import pt_peft.data.augmentation  # noqa: F401
    if content:
        prepare(content)
    gc.freeze()  # what is there stays in the memory that all workers share
    gc.enable()


def _work(connection: socket.socket, folder: Path) -> None:
    from pt_peft.worker.session import Session

    frames.send(connection, {"pid": os.getpid()})
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, requests), daemon=True).start()
    session, turns = Session(), Turns(folder)
    while True:
        message, tensors = requests.get()
        if message["request"] == "open":
            _prepare_process(message)
        try:
            with turns.turn() if message["request"] in COMPUTING else nullcontext():
                reply, result = session.requests[message["request"]](message, tensors)
        except (UserError, TensorError) as error:
            reply, result = {"error": str(error), "kind": type(error).__name__}, {}
        except Exception as error:
            traceback.print_exc()
            reply, result = {"error": f"{type(error).__name__}: {error}", "kind": "crash"}, {}
        frames.send(connection, reply, result)


def _read(connection: socket.socket, requests: queue.SimpleQueue) -> None:
    """Takes requests off the connection even while one is worked on, so that the end of the user ends the worker."""
    try:
        while True:
            requests.put(frames.receive(connection))
    finally:
        # Whatever came that could not be read ends the worker too: it would never answer.
        os._exit(0)


def _prepare_process(message: dict) -> None:
    import torch

    torch.set_num_threads(message["threads"])
    os.makedirs(message["run_dir"], exist_ok=True)
    log_file = os.open(os.path.join(message["run_dir"], "worker.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s", force=True)


if __name__ == "__main__":
    main()
