"""The command line: ``python -m pt_peft check-site|export|methods|predict|pretrain``."""

import sys

from pt_peft.commands.dispatch import command, dispatch
from pt_peft.commands import check_site, export, methods, predict, pretrain

COMMANDS = {"check-site": check_site, "export": export, "predict": predict, "methods": methods, "pretrain": pretrain}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    dispatch("pt_peft", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
