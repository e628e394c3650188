"""A real federation on one machine: provisioned, separate processes, mTLS on the loopback."""

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
"""How long a server or a site has to be up."""


class Federation:
    """A server and sites, each in its own start-up kit in one folder."""

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Site],
        port: int,
        routes: Mapping[str, int] | None = None,
        project: Path = PROJECT,
    ):
        """Provisions the kits by the project file, with the names of `sites` in place of its own.

        Args:
            port: of the server.
            routes: the ports at which sites find the server, if they are not its own.
            project: the project file.

        Raises:
            UserError: if ``nvflare provision`` fails.
        """
        self._folder = folder
        self.sites = list(sites)
        self.port = port
        self.environment: dict[str, dict[str, str]] = {}
        """Variables that the server or a site is started with, beside this process's own."""
        provisioned = yaml.safe_load(project.read_text(encoding="utf-8"))
        participants = [one for one in provisioned["participants"] if one["type"] != "client"]
        participants[0]["fed_learn_port"] = port
        clients = [{"name": name, "type": "client", "org": name.replace("-", "_")} for name in sites]
        for client in clients:
            if client["name"] in (routes or {}):
                client["connect_to"] = {"host": "localhost", "port": routes[client["name"]]}
        provisioned["participants"] = [participants[0], *clients, *participants[1:]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "project.yml").write_text(yaml.safe_dump(provisioned, sort_keys=False), encoding="utf-8")
        self._run("nvflare", "provision", "-p", "project.yml", "-w", ".")
        for name, site in sites.items():
            content = site.model_dump_json(exclude_defaults=True, indent=2) + "\n"
            write_atomically(self.kit(name) / "local" / "site.json", content.encode())

    def kit(self, name: str) -> Path:
        """The start-up kit of ``server``, a site or an admin."""
        return self._folder / "pt_peft" / "prod_00" / name

    def start(self, *names: str) -> None:
        """Starts the server and the sites, or those of `names`, by their ``start.sh``; does not wait for them."""
        for name in names or ("server", *self.sites):
            with open(self.kit(name) / "start.log", "ab") as log:
                subprocess.run(
                    ["bash", str(self.kit(name) / "startup" / "start.sh")],
                    env=_environment() | self.environment.get(name, {}),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, start_new_session=True,
                )  # fmt: skip

    def session(self, user: str = LEAD) -> Session:
        """FLARE's own API, as `user`. Waits for the server to be up. Raises UserError if it is not in time."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return new_secure_session(user, str(self.kit(user)))
            except Exception as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the server in {self.kit('server')} is not up after {START_S} s ({error})."
                    ) from None
                time.sleep(1)

    def wait_for(self, session: Session, *names: str, since: float = 0) -> None:
        """Until the sites, or those of `names`, are connected. Raises UserError if they are not in time.

        Args:
            since: seconds since 1970; signs of life before it do not count.
        """
        deadline = time.monotonic() + START_S
        while missing := set(names or self.sites) - _alive(session, since):
            if time.monotonic() > deadline:
                raise UserError(f"not connected after {START_S} s: {', '.join(sorted(missing))}.")
            time.sleep(1)

    def processes(self, name: str) -> list[psutil.Process]:
        """All processes that were started in a kit: the watchdog of ``start.sh``, FLARE's, their workers."""
        kit = str(self.kit(name))
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any(kit in argument for argument in process.info["cmdline"] or ()):
                found += [process, *_children(process)]
        return list(dict.fromkeys(found))

    def kill(self, name: str) -> None:
        """``kill -9`` of all that runs in a kit, as when its machine loses power."""
        for process in self.processes(name):
            _kill(process)
        # `start.sh` takes the watchdog for alive as long as nobody has waited for it.
        (self.kit(name) / "daemon_pid.fl").unlink(missing_ok=True)

    def close(self) -> None:
        """Ends everything, whoever presses Ctrl-C meanwhile."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for name in ("server", *self.sites):
                self.kill(name)
        finally:
            signal.signal(signal.SIGINT, before)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).parent / program), *arguments]
        done = subprocess.run(command, cwd=self._folder, env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{program} {arguments[0]}: {(done.stdout + done.stderr).strip()}")


def _environment() -> dict[str, str]:
    """FLARE's scripts start ``python3``, which is to be this one."""
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
