"""A provisioned federation's lead whose sites' lines can be cut."""

import json
import socket
from pathlib import Path
from typing import Any

from link import Link

from benchmark.federation.lead import Lead as AnyLead
from benchmark.federation.lead import Run, wait
from benchmark.federation.provisioned import Federation

__all__ = ["Lead", "Run", "edit", "free_port", "wait"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def edit(path: Path, **fields: Any) -> None:
    """Replaces fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


class Lead(AnyLead):
    def __init__(self, federation: Federation, links: dict[str, Link], folder: Path):
        super().__init__(federation, folder)
        self.links = links
        self.folder = folder
