"""The simulator's side of `pt_peft_flare.site_fork`: processes of sites that it starts, in place of `subprocess`'s."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

from pt_peft_flare.site_fork import MESSAGE_BYTES, PROGRAM


class SiteProcess:
    """A site's process, with what the simulator uses of `subprocess.Popen`."""

    def __init__(self, number: int, simulator: socket.socket):
        """Takes over a process.

        Args:
            number: its number, as the system knows it.
            simulator: the socket to the process that has forked it.
        """
        self.pid = number
        self.returncode: int | None = None
        """The exit code, negative for a signal; None until the end is known."""
        self._simulator = simulator
        self._ended = threading.Event()

    def ended(self, code: int) -> None:
        """Notes the end."""
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        """Returns `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the end. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(PROGRAM, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        with contextlib.suppress(OSError):
            self._simulator.send(json.dumps({"process": self.pid, "signal": number}).encode())

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


class SiteFork:
    """The process that forks the sites' processes. It imports from now on."""

    def __init__(self) -> None:
        """Starts it. Raises OSError where that cannot be."""
        self._socket, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pt_peft_flare.site_fork", str(others.fileno())],
                pass_fds=[others.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[SiteProcess | None] = queue.SimpleQueue()
        self._running: dict[int, SiteProcess] = {}
        self._gone = False
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, command: list[str], environment: dict[str, str]) -> SiteProcess | None:
        """Starts a process. Returns None if that cannot be here: `subprocess` has to.

        Args:
            command: as `site_fork.Start` has it.
            environment: all variables of the process.
        """
        asked = {"command": command, "environment": environment, "folder": os.getcwd()}
        message = json.dumps(asked).encode()
        with self._lock:
            if self._gone or len(message) > MESSAGE_BYTES:
                return None
            try:
                self._socket.send(message)
            except OSError:
                return None
            return self._answers.get()

    def _listen(self) -> None:
        while message := self._receive():
            told = json.loads(message)
            if "started" in told:
                process = self._running[told["started"]] = SiteProcess(told["started"], self._socket)
                self._answers.put(process)
            else:
                self._running.pop(told["ended"]).ended(told["code"])
        # It was killed, and nobody hears any more how its processes end: they end now.
        self._gone = True
        for process in self._running.values():
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
            process.ended(-signal.SIGKILL)
        self._answers.put(None)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(MESSAGE_BYTES)
        except OSError:
            return b""
