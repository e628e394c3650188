"""A provisioned federation's lead whose sites' lines can be cut."""

import socket
from pathlib import Path

from link import Link

from benchmark.federation.lead import Lead as AnyLead
from benchmark.federation.lead import Run, wait
from benchmark.federation.provisioned import Federation

__all__ = ["Lead", "Run", "free_port", "wait"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Lead(AnyLead):
    def __init__(self, federation: Federation, links: dict[str, Link], folder: Path):
        super().__init__(federation, folder)
        self.links = links
        self.folder = folder
