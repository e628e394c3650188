"""The command line of the benchmark: ``python -m benchmark COMMAND``."""

import sys

from benchmark.commands import archive, federation, hosts, membership, reconstruct, report, run, soak, summary, verify
from benchmark.measurements import image_cache
from pt_peft.commands.dispatch import Command, command, dispatch, parser

COMMANDS: dict[str, Command] = {
    "archive": archive,
    "federation": federation,
    "hosts": hosts,
    "image-cache": image_cache,
    "membership": membership,
    "reconstruct": reconstruct,
    "report": report,
    "run": run,
    "soak": soak,
    "summary": summary,
    "verify": verify,
}


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs the command that `arguments` name."""
    dispatch(parser("python -m benchmark", __doc__, COMMANDS), arguments)


if __name__ == "__main__":
    sys.exit(main())
