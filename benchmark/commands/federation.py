"""A federation of three hospitals on this machine, from provisioning to the adapter: mTLS, processes of their own."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--out", type=Path, default=Path("federation"), help="folder for kits, logs and results (federation)")
    parser.add_argument("--port", type=int, default=8002, help="of the server, on the loopback (8002)")
    parser.add_argument("--rounds", type=int, default=3, help="of the job (3)")
    parser.add_argument("--embedded", action="store_true", help="the embedded images instead of real ones")


def run(options: argparse.Namespace) -> None:
    """Raises UserError if a step fails."""
    from benchmark.federation_demo import demonstrate

    demonstrate(options.out, options.port, options.rounds, options.embedded)
