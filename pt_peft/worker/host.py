"""The worker host imports torch, timm and peft, builds the model of a job, and forks a worker for each connection.

    python -m pt_peft.worker.host LISTENER FOLDER [WORK.json] [--shared] < pipe

``LISTENER`` is the descriptor of a listening socket, ``FOLDER`` the host's own folder, ``WORK.json`` what
`pt_peft.worker.prepared.prepare` takes. All sites that run on a machine in one simulation share the imports and their
memory; a FLARE client process needs no torch of its own. The host ends, with its workers, when its standard input does.

Each user says first on which GPU it computes, of those that its own process sees. One fork answers all users of a GPU,
see `pt_peft.worker.shared_process`, or with ``--shared`` all users of a `Place`. The host itself never asks for a GPU:
its forks could not use one.
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
from typing import NoReturn

from pt_peft.worker import frames
from pt_peft.worker.place import Place, own_place, read_place
from pt_peft.worker.requests import Work
from pt_peft.worker.turns import Turns

SHARED = "--shared"
COMPUTING = ("train", "evaluate")
"""Requests that wait for a turn, see `pt_peft.worker.turns`."""
_FIRST_FRAME_S = 60
"""Seconds that a new connection may take to say its place. Its user says so as soon as it has connected."""


def main() -> NoReturn:
    """Serves until standard input ends."""
    arguments = [argument for argument in sys.argv[1:] if argument != SHARED]
    work = json.loads(Path(arguments[2]).read_text(encoding="utf-8")) if len(arguments) > 2 else None
    _make_ready(work)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _Host(socket.socket(fileno=int(arguments[0])), Path(arguments[1]), work, shared=SHARED in sys.argv).serve()


def _make_ready(work: Work | None) -> None:
    """Does once what each worker would spend seconds on."""
    gc.disable()  # a collection looks through all modules
    import torch

    from pt_peft.worker.prepared import prepare

    importlib.import_module("pt_peft.worker.shared_process")
    torch.set_num_threads(1)  # threads do not survive a fork; workers set their own number
    if work:
        prepare(work)
    gc.freeze()  # all objects so far stay in the memory that the workers share
    gc.enable()


class _Host:
    """Accepts connections, and gives each to a worker."""

    def __init__(self, listener: socket.socket, folder: Path, work: Work | None, *, shared: bool):
        self._listener = listener
        self._folder = folder
        self._work = work
        self._own = own_place(work and work["site"])
        """The place of what the host prepares for. A fork sees other GPUs."""
        self._shared = shared
        self._processes: dict[Place, socket.socket] = {}
        """By place the socket to the process that answers all its users. That closes when the process dies."""

    def serve(self) -> NoReturn:
        """Serves until standard input ends."""
        if self._is_shared(self._own):
            self._process_of(self._own)  # at once, so that it gets ready while its users start up
        while True:
            ready, _, _ = select.select([sys.stdin, self._listener], [], [])
            if sys.stdin in ready:
                shutil.rmtree(self._folder, ignore_errors=True)
                # The host leads its process group, see `host_process.WorkerHost`: this ends its workers and itself.
                os.killpg(0, signal.SIGKILL)
            connection, _ = self._listener.accept()
            with connection:
                try:
                    connection.settimeout(_FIRST_FRAME_S)
                    place = read_place(frames.receive(connection)[0])
                    connection.settimeout(None)
                except Exception:  # it is no user's, or its user has gone
                    continue
                if self._is_shared(place):
                    self._hand_over(connection, place)
                elif self._fork(place):
                    _work(connection, self._folder)

    def _is_shared(self, place: Place) -> bool:
        from pt_peft.worker.prepared import computes_on_gpu

        return self._shared or computes_on_gpu(place)

    def _hand_over(self, connection: socket.socket, place: Place) -> None:
        """Gives a connection to the process of its place, or to a new one if that has died, perhaps for its memory."""
        try:
            socket.send_fds(self._process_of(place, connection), [b"."], [connection.fileno()])
        except OSError:
            self._processes.pop(place).close()
            socket.send_fds(self._process_of(place, connection), [b"."], [connection.fileno()])

    def _process_of(self, place: Place, *accepted: socket.socket) -> socket.socket:
        """The socket to the process of a place, which is forked, without what was accepted, if there is none."""
        if place not in self._processes:
            ours, its = socket.socketpair()
            if self._fork(place, ours, *accepted):
                from pt_peft.worker.shared_process import serve

                serve(its, self._work if place == self._own else None)
            its.close()
            self._processes[place] = ours
        return self._processes[place]

    def _fork(self, place: Place, *others: socket.socket) -> bool:
        """Forks. Returns true in the fork, which has no socket of other processes, and sees the GPUs of the place."""
        if os.fork():
            return False
        for one in (self._listener, *self._processes.values(), *others):
            one.close()
        os.close(0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        place.show()
        return True


def _work(connection: socket.socket, folder: Path) -> NoReturn:
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
