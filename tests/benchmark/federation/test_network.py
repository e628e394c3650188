"""Hosts of their own: what passes between them, what happens to them, and that nothing of them stays."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmark.federation.network import BRIDGE, Network
from pt_peft.errors import UserError

PROBE = Path(__file__).with_name("network_probe.py")
ROOT = Path(__file__).parents[3]


def start(command, folder, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir()
    return subprocess.Popen(
        [*command, sys.executable, str(PROBE), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # the harness is not installed
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def found(own_network_command, tmp_path_factory) -> dict:
    """What one of two networks found that were there at the same time."""
    folder = tmp_path_factory.mktemp("networks")
    both = [start(own_network_command, folder / name) for name in ("one", "other")]
    said = [process.communicate()[0] for process in both]
    one, other = map(json.loads, said)
    assert one.keys() == other.keys()
    assert all(isinstance(one[key], float) == isinstance(other[key], float) for key in one)
    return one


@pytest.mark.parametrize("who", ["site", "lead", "the other, meanwhile", "mended", "after power was lost"])
def test_the_servers_port_is_reached_by_its_name(found, who):
    assert isinstance(found[who], float)


@pytest.mark.parametrize("what", ["other port", "site to site", "server to site", "lead to site", "cut"])
def test_nothing_else_passes_and_nobody_is_told(found, what):
    assert found[what] == "TimeoutError", "an answer, also a refusal, would end the wait sooner"


def test_a_line_carries_what_it_may(found):
    assert found["100 kB"] < 0.3
    assert found["100 kB at 1 Mbit/s"] > 0.5


def test_a_server_that_moves_is_found_by_its_name(found):
    before, after, site, lead = found["moved"]
    assert before != after
    assert isinstance(site, float)
    assert isinstance(lead, float)


def test_a_host_that_lost_its_power_has_no_processes_left(found):
    assert found["its processes"] == ["bash", "ps"]
    assert found["its name"] == "near"


def test_nothing_is_left_of_a_network_whose_process_is_killed(own_network_command, tmp_path):
    hosts = Path("/etc/hosts").read_bytes()
    token = str(os.getpid() + 100_000)  # seconds that nobody else sleeps
    process = start(own_network_command, tmp_path / "killed", token)
    assert process.stdout
    process.stdout.readline()
    while not _sleeping(token):
        assert process.poll() is None
        time.sleep(0.1)
    inside = [*_sleeping(token), *psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.wait()
    process.stdout.close()
    _, left = psutil.wait_procs(inside, 10)
    assert not left
    assert not _sleeping(token)
    assert Path("/etc/hosts").read_bytes() == hosts
    assert not {BRIDGE, "port2"} & psutil.net_if_addrs().keys()


def _sleeping(token: str) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", token]]


def test_this_machines_own_network_is_not_touched(tmp_path):
    with pytest.raises(UserError, match="namespaces of its own"):
        Network(tmp_path, "server", ["site"], 8002, "server.example")


def test_what_a_machine_lacks_is_said(monkeypatch, tmp_path):
    """`tc` cannot be found: the reason is the shell's."""
    from benchmark.federation import network

    monkeypatch.setattr(network, "_TRIAL", "echo 'sh: tc: not found' >&2; exit 127")
    with pytest.raises(UserError, match="cannot be made on this machine: sh: tc: not found"):
        network.own_network()
