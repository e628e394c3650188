"""The lead's command line: ``python -m pt_peft_flare submit|status``. Results come by ``nvflare job download``, a job that
broke off goes on by ``nvflare job clone``."""

import argparse
import sys

from pt_peft.command import command
from pt_peft_flare.commands import status, submit

COMMANDS = {"submit": submit, "status": status}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pt_peft_flare", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        subparser.add_argument("--kit", required=True, help="your start-up kit, as `nvflare provision` made it for you")
        module.add_arguments(subparser)
        subparser.set_defaults(command=module.run)
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    sys.exit(main())
