"""The command line: ``python -m pt_peft check-site|export|methods|predict|pretrain``."""

import argparse
import sys

from pt_peft.command import command
from pt_peft.commands import check_site, export, methods, predict, pretrain

COMMANDS = {"check-site": check_site, "export": export, "predict": predict, "methods": methods, "pretrain": pretrain}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pt_peft", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(command=module.run)
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    sys.exit(main())
