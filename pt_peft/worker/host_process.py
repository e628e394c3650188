"""Starts and ends a worker host, see `pt_peft.worker.host`. Imports no torch."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.worker.folder import SOCKET, new_folder
from pt_peft.worker.requests import Work

_END_S = 10
"""Seconds that a host may take to end once its standard input has ended."""


class WorkerHost:
    """A running host process, a child of this one."""

    def __init__(self, log: Path, work: Work | None = None, *, shared: bool = False):
        """Starts the host.

        Args:
            log: file that the host's own output is appended to; its workers have logs of their own.
            work: what most workers will be opened with, so that the host prepares for it.
            shared: whether one process answers all users even if they compute on no GPU.

        Raises:
            UserError: if the system has no place for the host's folder.
        """
        try:
            self._folder = new_folder()
            self.socket = os.path.join(self._folder.name, SOCKET)
            """Path of the socket on which the host listens."""
            try:
                self._process = self._start(log, work, shared)
            except OSError:
                self._folder.cleanup()
                raise
        except OSError as error:
            raise UserError(
                f"the worker host cannot be started ({error}); a folder with space for it and a short path, as TMPDIR, "
                "would be right."
            ) from None

    def _start(self, log: Path, work: Work | None, shared: bool) -> subprocess.Popen[bytes]:
        arguments = [self._folder.name]
        if work:
            arguments.append(os.path.join(self._folder.name, "work.json"))
            Path(arguments[-1]).write_text(json.dumps(work), encoding="utf-8")
        if shared:
            arguments.append("--shared")
        log.parent.mkdir(parents=True, exist_ok=True)
        # The socket listens from now on: users that connect before the host has imported wait for its greeting.
        with open(log, "ab") as output, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.socket)
            listener.listen(128)
            return subprocess.Popen(
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
        """Whether the host has not ended."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Waits until the host ends."""
        self._process.wait()

    def close(self) -> None:
        """Ends the host and its workers, also if it hangs."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()  # the host has removed most of it itself
