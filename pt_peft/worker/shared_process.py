"""The one process that answers all users of a host who compute on the same GPU.

A process that uses a GPU cannot be forked, and each further one would hold a CUDA context and a copy of the backbone of
its own. So the host forks one process for each GPU, and their users' connections are answered there, one request after
the other: sites with the same experiment share one trainer, and a further site costs the GPU no more than its images.
The GPU would share its time out among several processes, and give each no more. Users of different GPUs compute at the
same time.

A user who closes the connection, as `Worker.kill` does, stops its own request alone. If that does not stop in time, as
the GPU hangs, the process ends; the host then forks another, and users connect again as they do to a worker that died.
"""

import gc
import os
import queue
import signal
import socket
import threading
import time
import traceback
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import torch

from pt_peft.exchange.tensors import Tensors
from pt_peft.worker import frames
from pt_peft.worker.answering import answer, open_log, work_for
from pt_peft.worker.prepared import prepare
from pt_peft.worker.request_handler import RequestHandler
from pt_peft.worker.requests import Work

STOP_S = 60.0
"""Seconds within which a request stops whose user has gone."""
_LOOK_S = 0.05


class _Gone(BaseException):
    """The user of the current request has gone. No handler of errors may take it for one."""


class _User:
    """One connection."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.handler = RequestHandler()
        self.threads = 1
        self.log: int | None = None
        self.gone = False


class SharedProcess:
    """Answers the connections that a host hands over in the main thread of this process, by the order of requests."""

    def __init__(self, host: socket.socket):
        """Starts to take connections from `host`. Makes itself the handler of a signal, so in the main thread."""
        self._host = host
        self._waiting: queue.SimpleQueue[tuple[_User, frames.Frame | None]] = queue.SimpleQueue()
        self._current: _User | None = None
        self._heard: _User | None = None
        self._log = os.dup(2)
        signal.signal(signal.SIGUSR1, self._stop_current)
        threading.Thread(target=self._accept, daemon=True).start()

    def serve(self) -> NoReturn:
        """Answers until the process is ended."""
        while True:
            with suppress(_Gone):
                self._current = None
                user, frame = self._waiting.get()
                if frame is None:
                    self._forget(user)
                    continue
                self._current = user  # before asking whether it has gone, see `_read`
                if not user.gone:
                    self._answer(user, *frame)

    def _answer(self, user: _User, message: dict[str, Any], tensors: Tensors) -> None:
        try:
            self._hear(user, message)
        except Exception:  # whatever a user sends, other users' requests go on
            self._hear_nobody()
            traceback.print_exc()
            with suppress(OSError):
                user.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            reply, result = answer(user.handler, message, tensors)
        except torch.AcceleratorError:  # no site could use the GPU in this process any more
            os._exit(1)
        with suppress(OSError):  # the user has gone
            frames.send(user.connection, reply, result)

    def _hear(self, user: _User, message: dict[str, Any]) -> None:
        """Lets this process work for `user`. Raises an error of any kind if `message` is no request."""
        if message["request"] == "open":
            user.threads = message["threads"]
            user.log = open_log(message["run_dir"])
        if user.log is None:
            raise ValueError(f"{message['request']!r} has come before 'open'")
        if user is not self._heard:
            work_for(user.threads, user.log)
            self._heard = user

    def _hear_nobody(self) -> None:
        """Sends what this process prints to the host's log, as no user's log may have another's errors."""
        self._heard = None
        work_for(1, self._log)

    def _forget(self, user: _User) -> None:
        """Gives back what a user who has gone has held alone."""
        if user is self._heard:
            self._hear_nobody()
        user.connection.close()
        del user.handler
        if user.log is not None:
            os.close(user.log)
        gc.collect()
        torch.cuda.empty_cache()

    def _accept(self) -> None:
        while True:
            _, descriptors, _, _ = socket.recv_fds(self._host, 1, 1)
            if not descriptors:  # the host has ended, and nobody else ends its workers
                os._exit(0)
            user = _User(socket.socket(fileno=descriptors[0]))
            threading.Thread(target=self._read, args=(user,), daemon=True).start()

    def _read(self, user: _User) -> None:
        """Reads requests even while others are worked on, so that a user's own ends with it."""
        try:
            frames.send(user.connection, {"pid": os.getpid(), "shared": True})
            while True:
                self._waiting.put((user, frames.receive(user.connection)))
        except Exception:  # what cannot be read ends the connection too: it would never be answered
            user.gone = True
        until = time.monotonic() + STOP_S
        while self._current is user:
            if time.monotonic() > until:
                os._exit(1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(_LOOK_S)
        self._waiting.put((user, None))

    def _stop_current(self, _signal: int, _frame: FrameType | None) -> None:
        if self._current is not None and self._current.gone:
            self._current = None
            raise _Gone


def serve(host: socket.socket, work: Work | None) -> NoReturn:
    """Prepares for `work`, then answers all connections that come from `host`."""
    process = SharedProcess(host)
    if work:
        prepare(work, forks=False)
    process.serve()
