"""A worker process as its user sees it. Imports no torch."""

import contextlib
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from pt_peft import reasons
from pt_peft.errors import BackboneMismatch, OutsideLimits, ReasonedError, UserError
from pt_peft.exchange.tensors import TensorError, Tensors
from pt_peft.reasons import Reason, read_reason
from pt_peft.worker import frames
from pt_peft.worker.place import Place, own_place
from pt_peft.worker.requests import Opening

_POLL_S = 0.2
_DYING_S = 5
"""Seconds that a process may take to die, as to give a GPU back, before its host starts another."""


class WorkerError(ReasonedError):
    """A worker died, was stopped or broke down; the message says which."""

    def __init__(self, message: str, reason: Reason | None = None):
        super().__init__(message, reason=reason or reasons.WorkerDied())


class HostGone(WorkerError):
    """No worker can be had because the host does not answer."""


_ERRORS: dict[str, Callable[..., ReasonedError]] = {
    error.__name__: error for error in (UserError, BackboneMismatch, OutsideLimits, TensorError, WorkerError)
}


class Patience:
    """How long to wait for a worker, from its making on."""

    def __init__(self, seconds: float = math.inf, stopped: Callable[[], bool] = lambda: False):
        """Starts the clock.

        Args:
            seconds: to wait at most.
            stopped: asked several times a second; waiting ends as soon as it returns true.
        """
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._stopped = stopped

    def wait_for(self, connection: socket.socket) -> None:
        """Waits until something has come in. Raises TimeoutError, or WorkerError once it was stopped."""
        while not select.select([connection], [], [], _POLL_S)[0]:
            if self._stopped():
                raise WorkerError("stopped", reasons.Stopped())
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"not within {self.seconds:g} s")


class Worker:
    """One worker process, opened for one site or for the server."""

    def __init__(self, host: str, opening: Opening, patience: Patience | None = None):
        """Connects to a host and sends the request ``open``.

        Args:
            host: path of the host's socket. The host may still be importing.
            opening: see `pt_peft.worker.request_handler.RequestHandler.open`.
            patience: how long to wait; None for ever.

        Raises:
            HostGone: if the host does not answer.
            UserError: if the experiment or the site's settings are invalid.
            WorkerError: as `call`.
        """
        patience = patience or Patience()
        try:
            greeting = self._connect(host, own_place(opening["site"]), patience)
        except (OSError, EOFError) as error:
            self._connection.close()
            raise HostGone(f"the worker host at {host} does not answer ({error})") from None
        except WorkerError:
            self._connection.close()
            raise
        self.pid: int = greeting["pid"]
        self._shared = bool(greeting.get("shared"))
        try:
            self.call("open", opening, patience=patience)
        except Exception:
            self.kill()
            raise

    def _connect(self, host: str, place: Place, patience: Patience) -> dict[str, Any]:
        """Connects, and returns the greeting of a worker. Raises OSError or EOFError if none can be had."""
        until = time.monotonic() + _DYING_S
        while True:
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(host)
            frames.send(self._connection, place.fields())
            patience.wait_for(self._connection)
            try:
                return frames.receive(self._connection)[0]
            except EOFError:  # the host has given the connection to a process that was about to die
                self._connection.close()
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_S)

    def call(
        self,
        request: str,
        message: Mapping[str, object] | None = None,
        tensors: Tensors | None = None,
        patience: Patience | None = None,
    ) -> frames.Frame:
        """Sends one request and waits for its reply.

        Args:
            request: name of a method in `pt_peft.worker.request_handler.RequestHandler.requests`.
            message: the request's JSON part, see `pt_peft.worker.requests`.
            tensors: that go with it.
            patience: how long to wait before the worker is killed; None for ever.

        Returns:
            The reply's JSON part and its tensors.

        Raises:
            UserError, TensorError: as the worker raised them, with their reasons.
            WorkerError: if the worker died, broke down, was stopped or took too long.
        """
        patience = patience or Patience()
        try:
            frames.send(self._connection, {**(message or {}), "request": request}, tensors)
            patience.wait_for(self._connection)
            reply, result = frames.receive(self._connection)
        except TimeoutError:
            self.kill()
            late = f"did not finish {request} within {patience.seconds:g} s and was stopped"
            raise WorkerError(late, reasons.WorkerTimeout(seconds=patience.seconds)) from None
        except (OSError, EOFError):
            self._connection.close()
            raise WorkerError(f"the worker (process {self.pid}) died during {request}") from None
        except WorkerError:
            self.kill()
            raise
        if "error" in reply:
            raise _error(reply["error"])
        return reply, result

    def kill(self) -> None:
        """Ends the worker at once, even while it works; does nothing if the worker is known to have ended.

        A process that others use too goes on, and stops what it does for this one.
        """
        if self._connection.fileno() < 0:
            return
        self._connection.close()
        if self._shared:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _error(fields: frames.ErrorFields) -> ReasonedError:
    """The error that `frames.error_fields` describes."""
    error = _ERRORS[fields["kind"]](*fields["arguments"])
    error.reason = read_reason(fields["reason"]) or error.reason
    return error
