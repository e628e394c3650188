"""The benchmark's command line: ``python -m benchmark COMMAND``."""

import argparse
import sys

from benchmark.commands import image_cache, partition, report, run
from pt_peft.command import command

COMMANDS = {"image-cache": image_cache, "partition": partition, "report": report, "run": run}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark", description=__doc__.splitlines()[0])
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
