"""A provisioned federation whose server and sites have hosts of their own, and what can happen to these."""

import time
from collections.abc import Sequence
from pathlib import Path

from benchmark.federation.lead import Lead
from benchmark.federation.network import Host, Network
from benchmark.federation.provisioned import Federation
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site

SERVER = "server"
DNS_NAME = "server.consortium.example"
"""Under which sites and the lead find the server."""
PORT = 8002
STOP_S = 120
"""Seconds in which what was told to stop must have ended."""


class Lab:
    """A started federation of `sites`; this process is the lead's, in a network of its own (see `network`).

    Attributes:
        hosts: by name, with that of the server.
        federation: their kits.
        lead: who submits jobs.
    """

    def __init__(self, folder: Path, sites: Sequence[str], absent: Sequence[str] = ()):
        """Makes the hosts, provisions the kits, and starts all but the `absent` sites.

        Args:
            folder: takes kits, logs and results.
            sites: names of the sites.
            absent: those of them whose hosts are not switched on.
        """
        # So that a run can be compared with a plain loop.
        settings = Site(threads=1, cache=str(folder / "cache"), limits=Limits(secret_draws=False))
        self.federation = Federation(folder, dict.fromkeys(sites, settings), PORT, host=DNS_NAME)
        self.network = Network(folder, SERVER, sites, PORT, DNS_NAME)
        present = [name for name in sites if name not in absent]
        for name in absent:
            self.lose_power(name)
        for name in (SERVER, *present):
            self._start_kit(name)
        self.lead = Lead(self.federation, folder)
        self.federation.wait_for(self.lead.session, *present)

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts, by name."""
        return self.network.hosts

    def lose_power(self, name: str) -> None:
        """Ends a host at once; nobody is told."""
        self.hosts[name].stop()

    def shut_down(self, name: str) -> None:
        """Ends a host after its engineer has stopped what runs there."""
        script = self.federation.kit(name) / "startup" / "stop_fl.sh"
        self.hosts[name].run(f"bash {script} --yes")
        deadline = time.monotonic() + STOP_S
        while self.federation.processes(name) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.hosts[name].stop()

    def start(self, name: str) -> None:
        """Starts a host after `lose_power` or `shut_down`, and its kit."""
        self.hosts[name].start()
        self._start_kit(name)

    def _start_kit(self, name: str) -> None:
        self.federation.enter[name] = self.hosts[name].enter
        self.federation.start(name)
