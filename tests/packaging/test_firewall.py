"""deploy/server.nft, in a network of its own."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

RULES = Path(__file__).parents[2] / "deploy" / "server.nft"
SERVER = """
import socket
listener = socket.create_server(("10.213.8.10", 8002), backlog=500)
print("ready", flush=True)
taken = []
while True:
    taken.append(listener.accept())
"""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}"


@pytest.fixture
def host():
    """Another host, whose firewall it is, at 10.213.8.10."""
    missing = [program for program in ("nft", "ip") if not shutil.which(program)]
    if missing or os.geteuid():
        pytest.skip(f"needs root and {', '.join(missing) or 'its rights'}")
    name = f"nft{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    inside = ("ip", "netns", "exec", name)
    try:
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        for address in ("10.213.8.1/24", "10.213.8.2/24"):
            run("ip", "address", "add", address, "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        run(*inside, "ip", "address", "add", "10.213.8.10/24", "dev", f"{name}b")
        run(*inside, "ip", "link", "set", f"{name}b", "up")
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name])


def connections(source: str, count: int, port: int = 8002) -> list[socket.socket]:
    made = []
    for _ in range(count):
        with suppress(OSError):
            made.append(socket.create_connection(("10.213.8.10", port), timeout=0.5, source_address=(source, 0)))
    return made


def test_one_address_cannot_use_up_the_connections_of_others(host):
    run(*host, "nft", "-c", "-f", str(RULES))
    run(*host, "nft", "-f", str(RULES))
    with subprocess.Popen([*host, sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            server.stdout.readline()
            stranger = connections("10.213.8.1", 60)
            site = connections("10.213.8.2", 5)
            assert (len(stranger), len(site)) == (32, 5)
            assert not connections("10.213.8.2", 1, port=9000)
            for one in (*stranger, *site):
                one.close()
        finally:
            server.kill()
