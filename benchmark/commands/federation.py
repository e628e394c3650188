"""Runs a federation of three hospitals on this machine, from provisioning to the adapter.

Server and hospitals are processes of their own that talk over mutual TLS.

Example:
    python -m benchmark federation --out federation --rounds 3 --embedded
"""

import argparse
import signal
import socket
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("federation"), help="folder for kits, logs and results (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=_free_port,
        default="8002",
        help="the server's port on the loopback interface (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=_rounds, default=3, help="rounds of the job (default: %(default)s)")
    parser.add_argument("--embedded", action="store_true", help="train on the embedded images instead of HAM10000")


def run(options: argparse.Namespace) -> None:
    """Runs all steps. Raises UserError if one fails."""
    from benchmark.federation.demo import demonstrate

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # as Ctrl-C does: nothing is left running
    demonstrate(options.out, options.port, options.rounds, options.embedded)


def _rounds(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"is '{text}'; a number from 1 to 1000 would be right")
    return int(text)


def _free_port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"is '{text}'; a port from 1 to 65535 would be right")
    try:
        socket.create_server(("127.0.0.1", int(text))).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text} cannot be listened on ({error.strerror}); another port would be right"
        ) from None
    return int(text)
