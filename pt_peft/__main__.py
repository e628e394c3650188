"""The command line: ``python -m pt_peft check-site|export|methods|partition|predict|pretrain``."""

import sys

from pt_peft.commands import check_site, export, methods, partition, predict, pretrain
from pt_peft.commands.dispatch import command, dispatch

COMMANDS = {
    "check-site": check_site,
    "partition": partition,
    "export": export,
    "predict": predict,
    "methods": methods,
    "pretrain": pretrain,
}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    dispatch("pt_peft", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
