"""Which worker host a process uses. Imports no torch."""

import os
import threading
import time
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.files import write_atomically
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.requests import Work

HOST_VARIABLE = "PT_PEFT_WORKER_HOST"
"""Environment variable with the path of the socket of a host that this process may use."""

_REPLACED_S = 5
"""Seconds within which the process that announced a host replaces it when it dies."""
_REPLACEMENTS = 10
"""Hosts that are started in place of dead ones; if more die, something else is wrong."""
_LOOK_S = 0.1
"""Seconds between looks at an announcement."""


class HostLookup:
    """Finds the worker host of this process, in this order.

    1. The host that this process has started.
    2. The host that the environment variable `HOST_VARIABLE` names. The process that started this one set it; the
       benchmark harness does so, with one host for all its simulations.
    3. The host that another process has announced in a file. In a simulation the server announces its host to the
       sites. (It cannot use the environment: the simulator may start sites before the server has a host.)
    4. A new host, which this process starts.

    Hosts are told apart by the path of their socket. All components of a process share one lookup, `HOSTS`.
    """

    def __init__(self) -> None:
        self.started: WorkerHost | None = None
        """The host that this process has started, if any."""
        self._lock = threading.RLock()

    def find(self, folder: Path, work: Work | None, announcement: Path | None = None) -> str:
        """Returns the socket of the host to use.

        Args:
            folder: takes the log of a host that is started.
            work: as in `WorkerHost`, for a host that is started.
            announcement: file in which another process may have announced its host.

        Raises:
            UserError: as `WorkerHost` does.
        """
        with self._lock:
            if self.started is not None:
                return self.started.socket
            if HOST_VARIABLE in os.environ:
                return os.environ[HOST_VARIABLE]
            if announcement and announcement.exists():
                return announcement.read_text()
            self.started = WorkerHost(folder / "worker_host.log", work)
            return self.started.socket

    def replace(self, gone: str, folder: Path, work: Work | None, announcement: Path | None = None) -> str:
        """Returns the socket of another host in place of `gone`, which does not answer.

        It waits up to five seconds for the process that announced `gone` to announce another. Then the order is as in
        `find`, without the announcement. Arguments and errors are those of `find`.
        """
        until = time.monotonic() + _REPLACED_S
        while announcement and announcement.exists() and time.monotonic() < until:
            if (another := announcement.read_text()) != gone:
                return another
            time.sleep(_LOOK_S)
        with self._lock:
            if self.started is not None and self.started.socket == gone:
                self.close()
            if os.environ.get(HOST_VARIABLE) == gone:
                del os.environ[HOST_VARIABLE]
            return self.find(folder, work)

    def announce(self, folder: Path, work: Work | None, announcement: Path) -> None:
        """Finds a host, and announces it to other processes in the file `announcement`.

        If this process has started the host, it starts and announces another when that one dies, until `close`. Other
        arguments and errors are those of `find`.
        """
        write_atomically(announcement, self.find(folder, work).encode())
        threading.Thread(target=self._replace_dead, args=(folder, work, announcement), daemon=True).start()

    def close(self) -> None:
        """Ends the host that this process has started, if any, with its workers."""
        with self._lock:
            if self.started is not None:
                self.started.close()
                self.started = None

    def _replace_dead(self, folder: Path, work: Work | None, announcement: Path) -> None:
        for _ in range(_REPLACEMENTS):
            with self._lock:
                host = self.started
            if host is None:
                return
            host.wait()
            with self._lock:
                if self.started is None:  # closed
                    return
                try:
                    socket = self.replace(host.socket, folder, work)
                except UserError:  # raised again when a worker is needed
                    return
            write_atomically(announcement, socket.encode())


HOSTS = HostLookup()
"""The lookup of this process."""
