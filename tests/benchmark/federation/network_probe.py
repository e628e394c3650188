"""Run in a network of its own by test_network.py: tries a server and two sites, and prints what it found."""

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmark.federation.network import Host, Network

NAME, PORT, OTHER_PORT = "server.example", 8002, 8003
PATIENCE_S = 1
SERVE = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    connection = listener.accept()[0]
    while connection.recv(1 << 16):
        pass
    connection.sendall(b"!")
    connection.close()
"""
SEND = """
import socket, sys, time
address, port, patience, count = sys.argv[1], *map(int, sys.argv[2:])
began = time.monotonic()
try:
    with socket.create_connection((address, port), patience) as line:
        line.settimeout(60)
        line.sendall(bytes(count))
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1) == b"!"
except OSError as error:
    print(type(error).__name__)
else:
    print(time.monotonic() - began)
"""


def serve(host: Host, port: int) -> None:
    process = subprocess.Popen([*host.enter, sys.executable, "-c", SERVE, str(port)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()


def send(host: Host | None, address: str, port: int = PORT, count: int = 1) -> float | str:
    """Seconds that it took to send so many bytes and to be answered, or the error; `host` None is the lead's desk."""
    command = [*(host.enter if host else ()), sys.executable, "-c", SEND, address, str(port), str(PATIENCE_S)]
    said = subprocess.run([*command, str(count)], capture_output=True, text=True).stdout.strip()
    return float(said) if said and said[0].isdigit() else said


def main() -> None:
    folder = Path(sys.argv[1])
    network = Network(folder, "server", ["near", "far"], PORT, NAME)
    server, near, far = network.hosts.values()
    for host, port in ((server, PORT), (server, OTHER_PORT), (near, PORT), (far, PORT)):
        serve(host, port)
    found: dict[str, object] = {
        "site": send(near, NAME),
        "lead": send(None, NAME),
        "other port": send(near, NAME, OTHER_PORT),
        "site to site": send(near, far.address),
        "server to site": send(server, near.address),
        "lead to site": send(None, near.address),
    }
    near.cut()
    found["cut"] = send(near, NAME)
    found["the other, meanwhile"] = send(far, NAME)
    near.mend()
    found["mended"] = send(near, NAME)
    near.limit(1)
    found["100 kB at 1 Mbit/s"] = send(near, NAME, count=100_000)
    near.limit(None)
    found["100 kB"] = send(near, NAME, count=100_000)
    before = server.address
    network.move_server()
    found["moved"] = [before, server.address, send(near, NAME), send(None, NAME)]
    near.stop()
    near.start()
    found["after power was lost"] = send(near, NAME)
    found["its processes"] = near.run("ps -e -o comm=").split()
    found["its name"] = near.run("hostname").strip()
    print(json.dumps(found), flush=True)
    if len(sys.argv) > 2:
        subprocess.Popen([*near.enter, "sleep", sys.argv[2]])
        time.sleep(600)


main()
