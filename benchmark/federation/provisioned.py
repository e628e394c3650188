"""A real federation on one machine: provisioned start-up kits, separate processes, mTLS on the loopback."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import yaml
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.files import write_atomically

PROJECT = Path(__file__).parents[2] / "deploy" / "project.yml"
LEAD = "lead@consortium.example"
ADMIN = "admin@consortium.example"
START_S = 120
"""Seconds in which a server or a site must be up."""


class Federation:
    """A server and sites, each in its own start-up kit in one folder.

    Attributes:
        sites: names of the sites.
        port: of the server.
        environment: variables that the server or a site starts with beside those of this process, by its name.
        enter: the command before a program that runs it on the host of the server or of a site, by its name.
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Site],
        port: int,
        routes: Mapping[str, int] | None = None,
        project: Path = PROJECT,
        host: str = "localhost",
    ):
        """Provisions the kits by a project file whose sites are replaced.

        Args:
            folder: takes the kits; made if it does not exist.
            sites: the settings of each site, by its name.
            port: of the server.
            routes: port at which a site finds the server, by the site's name, if it is not `port`.
            project: the project file.
            host: the server's DNS name.

        Raises:
            UserError: if ``nvflare provision`` fails.
        """
        self._folder = folder
        self.sites = list(sites)
        self.port = port
        self.environment: dict[str, dict[str, str]] = {}
        self.enter: dict[str, list[str]] = {}
        self._sessions: list[Session] = []
        provisioned = yaml.safe_load(project.read_text(encoding="utf-8"))
        server, *people = (one for one in provisioned["participants"] if one["type"] != "client")
        server |= {"default_host": host, "fed_learn_port": port}
        clients = [_client(name, (routes or {}).get(name)) for name in sites]
        provisioned["participants"] = [server, *clients, *people]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "project.yml").write_text(yaml.safe_dump(provisioned, sort_keys=False), encoding="utf-8")
        self._run("nvflare", "provision", "-p", "project.yml", "-w", ".")
        for name, site in sites.items():
            content = site.model_dump_json(exclude_defaults=True, indent=2) + "\n"
            write_atomically(self.kit(name) / "local" / "site.json", content.encode())

    def kit(self, name: str) -> Path:
        """Returns the start-up kit of ``server``, a site or an admin."""
        return self._folder / "pt_peft" / "prod_00" / name

    def start(self, *names: str) -> None:
        """Starts the server and the sites, or `names` of them, by their ``start.sh``, and does not wait for them."""
        for name in names or ("server", *self.sites):
            with open(self.kit(name) / "start.log", "ab") as log:
                subprocess.run(
                    [*self.enter.get(name, ()), "bash", str(self.kit(name) / "startup" / "start.sh")],
                    env=_environment() | self.environment.get(name, {}),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, start_new_session=True,
                )  # fmt: skip

    def session(self, user: str = LEAD, within_s: float = START_S) -> Session:
        """Opens a session of FLARE's own API as `user`. Raises UserError if the server is not up within `within_s`."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                session = new_secure_session(user, str(self.kit(user)))
                self._sessions.append(session)
                return session
            except Exception as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the server in {self.kit('server')} is not up after {within_s} s ({error})."
                    ) from None
                time.sleep(1)

    def wait_for(self, session: Session, *names: str, since: float = 0) -> None:
        """Waits until sites are connected.

        Args:
            session: of anyone who may see the sites.
            names: the sites; all if none are given.
            since: seconds since 1970; signs of life before it do not count.

        Raises:
            UserError: if they are not connected within `START_S`.
        """
        deadline = time.monotonic() + START_S
        while missing := set(names or self.sites) - _alive(session, since):
            if time.monotonic() > deadline:
                raise UserError(f"not connected after {START_S} s: {', '.join(sorted(missing))}.")
            time.sleep(1)

    def processes(self, name: str) -> list[psutil.Process]:
        """Lists the processes that were started in a kit: the watchdog of ``start.sh``, FLARE's, their workers."""
        kit = str(self.kit(name))
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline"]):
            if any(kit in argument for argument in process.info["cmdline"] or ()):
                found += [process, *_children(process)]
        return list(dict.fromkeys(found))

    def kill(self, name: str) -> None:
        """Kills all that runs in a kit by SIGKILL, as when its machine loses power."""
        for process in self.processes(name):
            _kill(process)

    def close(self) -> None:
        """Kills all processes of the federation and ends its sessions. Ctrl-C does not interrupt this.

        A session that stays open has a thread that looks for its server, and Python does not end before that does.
        """
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for name in ("server", *self.sites):
                self.kill(name)
            for session in self._sessions:
                session.api.close()
        finally:
            signal.signal(signal.SIGINT, before)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).parent / program), *arguments]
        done = subprocess.run(command, cwd=self._folder, env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{program} {arguments[0]}: {(done.stdout + done.stderr).strip()}")


def _client(name: str, port: int | None) -> dict[str, object]:
    """Makes a site's entry in the project file; `port` is where it finds the server, if not at the server's own."""
    client: dict[str, object] = {"name": name, "type": "client", "org": name.replace("-", "_")}
    return client if port is None else {**client, "connect_to": {"host": "localhost", "port": port}}


def _environment() -> dict[str, str]:
    """Returns this process's environment, in which ``python3``, which FLARE's scripts start, is this Python."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _alive(session: Session, since: float) -> set[str]:
    return {client.name for client in session.get_system_info().client_info if client.last_connect_time >= since}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
