"""Benchmarks of federated fine-tuning: ``python -m benchmark COMMAND``."""

import sys

from benchmark.commands import federation, membership, report, run
from benchmark.measurements import image_cache
from pt_peft.commands.dispatch import command, dispatch

COMMANDS = {
    "federation": federation,
    "image-cache": image_cache,
    "membership": membership,
    "report": report,
    "run": run,
}


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    dispatch("benchmark", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
