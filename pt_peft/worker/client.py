"""A worker as its user sees it. Imports no torch."""

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pt_peft.errors import BackboneMismatch, OutsideLimits, UserError
from pt_peft.exchange.tensors import TensorError, Tensors
from pt_peft.worker import frames
from pt_peft.worker.folder import SOCKET, new_folder

HOST_VARIABLE = "PT_PEFT_WORKER_HOST"
"""Names the socket of a host that this process may use, inherited from whoever started that host."""

_POLL_S = 0.2
_END_S = 10
"""How long a host that was told to end may take."""
_ERRORS = {error.__name__: error for error in (UserError, BackboneMismatch, OutsideLimits, TensorError)}


class WorkerError(Exception):
    """A worker that died, was stopped or broke down; the reason is the message."""


class HostGone(WorkerError):
    """No worker could be had because its host does not answer."""


class WorkerHost:
    """A running host process, see `pt_peft.worker.host`."""

    def __init__(self, log: Path, work: dict | None = None):
        """Starts the host; its own output (not its workers') goes to the file `log`.

        Args:
            work: the ``experiment`` and ``site`` (their JSON) that most workers will be opened with, to prepare for them.

        Raises:
            UserError: if the system has no place for it.
        """
        try:
            self._folder = new_folder()
            try:
                self._start(log, work)
            except OSError:
                self._folder.cleanup()
                raise
        except OSError as error:
            raise UserError(
                f"the worker host cannot be started ({error}); a folder with space for it and a short path, as TMPDIR, would be right."
            ) from None

    def _start(self, log: Path, work: dict | None) -> None:
        self.socket = os.path.join(self._folder.name, SOCKET)
        arguments = [self._folder.name]
        if work:
            arguments.append(os.path.join(self._folder.name, "work.json"))
            Path(arguments[-1]).write_text(json.dumps(work), encoding="utf-8")
        log.parent.mkdir(parents=True, exist_ok=True)
        # Listening from now on: whoever connects before the host has imported waits for its greeting.
        with open(log, "ab") as output, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.socket)
            listener.listen(128)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pt_peft.worker.host", str(listener.fileno()), *arguments],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Until it ends."""
        self._process.wait()

    def close(self) -> None:
        """Ends the host and its workers, also if it hangs."""
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()  # mostly done by the host itself


class Patience:
    """How long to wait for a worker, from now on."""

    def __init__(self, seconds: float = math.inf, stopped: Callable[[], bool] = lambda: False):
        """Args:
        stopped: asked several times a second; once it is true there is nothing to wait for.
        """
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._stopped = stopped

    def wait_for(self, connection: socket.socket) -> None:
        """Until something has come in. Raises TimeoutError, or WorkerError once it was stopped."""
        while not select.select([connection], [], [], _POLL_S)[0]:
            if self._stopped():
                raise WorkerError("stopped")
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"not within {self.seconds:g} s")


class Worker:
    """One worker process, opened for one site or for the server."""

    def __init__(self, host: str, opening: dict, patience: Patience | None = None):
        """Connects to the host at the socket path `host`, which may still be importing, and opens a session.

        Args:
            opening: see `pt_peft.worker.session.Session.open`.
            patience: None waits for ever.

        Raises:
            HostGone: if the host does not answer.
            UserError: if the experiment or the site's settings are invalid.
            WorkerError: as `call`.
        """
        patience = patience or Patience()
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(host)
            patience.wait_for(self._connection)
            self.pid = frames.receive(self._connection)[0]["pid"]
        except (OSError, EOFError) as error:
            self._connection.close()
            raise HostGone(f"the worker host at {host} does not answer ({error})") from None
        except WorkerError:
            self._connection.close()
            raise
        try:
            self.call("open", opening, patience=patience)
        except Exception:
            self.kill()
            raise

    def call(
        self,
        request: str,
        message: dict | None = None,
        tensors: Tensors | None = None,
        patience: Patience | None = None,
    ) -> tuple[dict, Tensors]:
        """Sends one request and waits for its reply.

        Args:
            patience: when it ends the worker is killed; None waits for ever.

        Raises:
            UserError, TensorError: as the worker raised them.
            WorkerError: if the worker died, broke down, was stopped or took too long.
        """
        patience = patience or Patience()
        try:
            frames.send(self._connection, {**(message or {}), "request": request}, tensors)
            patience.wait_for(self._connection)
            reply, result = frames.receive(self._connection)
        except TimeoutError:
            self.kill()
            raise WorkerError(f"did not finish {request} within {patience.seconds:g} s and was stopped") from None
        except (OSError, EOFError):
            self._connection.close()
            raise WorkerError(f"the worker (process {self.pid}) died during {request}") from None
        except WorkerError:
            self.kill()
            raise
        if "error" in reply:
            raise _ERRORS.get(reply["kind"], WorkerError)(reply["error"])
        return reply, result

    def kill(self) -> None:
        """Ends the worker at once, whatever it is doing; one that is known to have ended is left alone."""
        if self._connection.fileno() < 0:
            return
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
