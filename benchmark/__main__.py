"""The benchmark's command line: ``python -m benchmark COMMAND``."""

import sys

from benchmark.commands import federation, image_cache, membership, partition, report, run
from pt_peft.command import command, dispatch

COMMANDS = {
    "federation": federation,
    "image-cache": image_cache,
    "membership": membership,
    "partition": partition,
    "report": report,
    "run": run,
}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    dispatch("benchmark", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
