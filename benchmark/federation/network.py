"""Hosts of their own on one machine: each has its own network, mounts and processes, and a line to one switch.

The process that makes a `Network` must itself be in namespaces of its own, where `own_network` brings it: it is the
switch and the lead's desk. All of it ends with that process, however it ends: the kernel kills a host's processes with
the host's first one, which ends when the pipe to this process does, and takes the interfaces and mounts away with the
last process in them. Nothing outside is changed, and any number of networks exist side by side.
"""

import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

from pt_peft.errors import UserError

INSIDE = "PT_PEFT_OWN_NETWORK"
"""Environment variable that says that this process is in namespaces of its own."""
BRIDGE = "switch"
PREFIX = "10.20.30."
"""Of all addresses; the network is connected to nothing else."""
LEAD_ADDRESS = f"{PREFIX}1"
_UNSHARE = ("unshare", "--net", "--mount")
_INIT = 'mount --bind "$1" /etc/hosts && ip link set lo up && echo ready && read -r'
"""The first process of a host. It ends, and all others of the host with it, when its input does."""
_TRIAL = f"""
set -e
ip link add {BRIDGE} type bridge
ip link add port type veth peer name line
tc qdisc add dev port root tbf rate 1mbit burst 32kbit latency 400ms
nft add table inet firewall
nft add chain inet firewall input '{{ type filter hook input priority 0; policy drop; }}'
nft add rule inet firewall input ct state established accept
unshare --net --mount --pid --fork --kill-child --mount-proc mount --bind /dev/null /etc/hosts
"""
"""All that a network needs of the machine."""


def own_network() -> list[str]:
    """The command before a program that brings it into a network of its own; as root without being it where it can.

    Raises:
        UserError: if this machine does not let this user make all that a `Network` needs, which is tried.
    """
    command = [*_UNSHARE, *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    try:
        tried = subprocess.run([*command, "sh", "-c", _TRIAL], capture_output=True, text=True)
    except FileNotFoundError:
        reason = "the program 'unshare' of util-linux is not installed"
    else:
        if not tried.returncode:
            return [*command, "env", f"{INSIDE}=1"]
        reason = tried.stderr.strip().splitlines()[-1] if tried.stderr.strip() else f"exit code {tried.returncode}"
    raise UserError(f"hosts of their own cannot be made on this machine: {reason}.")


class Host:
    """One machine: processes, interface ``eth0``, firewall and ``/etc/hosts`` of its own; its files are this machine's.

    Attributes:
        name: also the name of its port at the switch.
        address: its IPv4 address.
    """

    def __init__(self, name: str, number: int, hosts_file: Path, firewall: str):
        """Starts it.

        Args:
            name: of the host.
            number: its own in this network, from 2.
            hosts_file: takes the place of its ``/etc/hosts``; what is written to it counts at once.
            firewall: nftables' rules.
        """
        self.name = name
        self.address = f"{PREFIX}{number}"
        self._port = f"port{number}"
        self._hosts_file = hosts_file
        self._firewall = firewall
        self.start()

    def start(self) -> None:
        """Starts it after `stop`, with an empty list of processes and a new line to the switch."""
        self._first = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
             "bash", "-c", _INIT, self.name, str(self._hosts_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "ready\n":
            raise UserError(f"host {self.name} could not be started.")
        pid = psutil.Process(self._first.pid).children()[0].pid
        self.enter = ["nsenter", "--target", str(pid), "--net", "--mount", "--uts", "--pid"]
        """The command before a program that runs it there."""
        _call(f"ip link add {self._port} type veth peer name eth0 netns {pid}")
        self.run(f"hostname {self.name}")
        self.run("nft -f -", self._firewall)
        self.run("ip link set eth0 up")
        self.run(f"ip address add {self.address}/24 dev eth0")
        _call(f"ip link set {self._port} up")
        self.mend()

    def run(self, command: str, content: str = "") -> str:
        """Runs a command there, with `content` as its input. Returns its output. Raises UserError if it fails."""
        return _call(shlex.join(self.enter) + " " + command, content)

    def stop(self) -> None:
        """Ends it as when it loses power: all its processes at once, without a word to anybody."""
        self.cut()
        self.close()

    def close(self) -> None:
        """Ends it."""
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        _call(f"ip link delete {self._port}")  # now; the kernel takes its time, and the next start needs the name
        self._first.stdin.close()
        self._first.wait()
        self._first.stdout.close()

    def cut(self) -> None:
        """Cuts its line somewhere far away: what is sent is lost, and neither end is told."""
        _call(f"ip link set {self._port} nomaster")

    def mend(self) -> None:
        """Ends the cut."""
        _call(f"ip link set {self._port} master {BRIDGE}")

    def limit(self, megabits: float | None) -> None:
        """Limits what its line carries a second, in either direction; None takes the limit away."""
        rate = f"root tbf rate {megabits}mbit burst 32kbit latency 400ms"
        for call, interface in ((_call, self._port), (self.run, "eth0")):
            call(f"tc qdisc {f'replace dev {interface} {rate}' if megabits else f'delete dev {interface} root'}")

    def move(self, number: int) -> None:
        """Gives it another address in place of its own; its processes are not told."""
        self.run("ip address flush dev eth0")
        self.address = f"{PREFIX}{number}"
        self.run(f"ip address add {self.address}/24 dev eth0")


class Network:
    """A switch with a server and sites, each behind a firewall that lets through the server's port alone.

    Attributes:
        hosts: by name; the first is the server.
    """

    def __init__(self, folder: Path, server: str, sites: Iterable[str], port: int, server_name: str):
        """Starts all hosts.

        Args:
            folder: takes the files that stand in for ``/etc/hosts``.
            server: name of the server's host.
            sites: names of the sites' hosts.
            port: the one port that is let through: to the server, from anybody else.
            server_name: the server's DNS name, which all hosts and this process can look up.
        """
        if INSIDE not in os.environ:
            raise UserError("a Network needs a process in namespaces of its own; see `own_network`.")
        self._server, self._server_name = server, server_name
        self._files = {name: folder / f"{name}.hosts" for name in (server, *sites, "lead")}
        self._name_server(f"{PREFIX}2")
        _call("ip link set lo up")
        _call(f"ip link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0")
        _call(f"ip link set {BRIDGE} up")
        _call(f"ip address add {LEAD_ADDRESS}/24 dev {BRIDGE}")
        _call(f"mount --bind {shlex.quote(str(self._files['lead']))} /etc/hosts")
        _call("nft -f -", _firewall("", f"tcp dport {port} accept"))
        self.hosts = {
            name: Host(
                name,
                number,
                self._files[name],
                _firewall(f"tcp dport {port} accept", "")
                if name == server
                else _firewall("", f"tcp dport {port} accept"),
            )
            for number, name in enumerate((server, *sites), 2)
        }

    def move_server(self) -> None:
        """Gives the server's host another address, under which all find it by the same name."""
        server = self.hosts[self._server]
        last = int(server.address.removeprefix(PREFIX))
        server.move(len(self.hosts) + 2 if last == 2 else 2)
        self._name_server(server.address)

    def close(self) -> None:
        """Ends all hosts."""
        for host in self.hosts.values():
            host.close()

    def _name_server(self, address: str) -> None:
        for file in self._files.values():
            # In place: what is mounted is this very file.
            file.write_text(f"127.0.0.1 localhost\n{address} {self._server_name}\n", encoding="ascii")


def mount_small_disk(folder: Path, megabytes: int) -> None:
    """Puts an empty file system of that size over `folder`, for this process and hosts that are started later."""
    _call(f"mount -t tmpfs -o size={megabytes}m tmpfs {shlex.quote(str(folder))}")


def _firewall(let_in: str, let_out: str) -> str:
    """Rules that drop all but what is let in or out, the answers to it, and what a host says to itself."""
    return "\n".join(
        (
            "table inet firewall {",
            _chain("input", "iifname lo accept", let_in),
            _chain("output", "oifname lo accept", let_out),
            "}\n",
        )
    )


def _chain(hook: str, *rules: str) -> str:
    first = f"type filter hook {hook} priority 0; policy drop;"
    return "\n".join((f"chain {hook} {{", first, "ct state established,related accept", *rules, "}"))


def _call(command: str, content: str = "") -> str:
    done = subprocess.run(shlex.split(command), input=content, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"'{command}' failed: {done.stderr.strip()}")
    return done.stdout
