"""The command line of sites and researchers: ``python -m pt_peft COMMAND``."""

import sys

from pt_peft.commands import advise, check_site, export, methods, partition, predict, pretrain
from pt_peft.commands.dispatch import Command, command, dispatch, parser

COMMANDS: dict[str, Command] = {
    "check-site": check_site,
    "advise": advise,
    "partition": partition,
    "export": export,
    "predict": predict,
    "methods": methods,
    "pretrain": pretrain,
}


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs the command that `arguments` name."""
    dispatch(parser("python -m pt_peft", __doc__, COMMANDS), arguments)


if __name__ == "__main__":
    sys.exit(main())
