"""Makes a suite's result file of the present version of its schema from one of the version before, in place.

Example:
    python -m benchmark upgrade results/paper.jsonl
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("results", type=Path, help="the .jsonl file")


def run(options: argparse.Namespace) -> None:
    """Rewrites the file. Raises UserError if it cannot be read as one of the version before."""
    from benchmark.sweep.upgrade import upgrade

    print(f"{options.results}: {upgrade(options.results)} records")
