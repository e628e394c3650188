"""What all commands do with a mistake of the user's."""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], int]:
    """Makes `main` return an exit code: 0, 1 after printing what was wrong to standard error, or 130 if interrupted."""

    @functools.wraps(main)
    def with_exit_code(arguments: list[str] | None = None) -> int:
        try:
            main(arguments)
        except (UserError, TensorError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return with_exit_code


def dispatch(program: str, description: str, commands: Mapping[str, ModuleType], arguments: list[str] | None) -> None:
    """Runs one of several subcommands, each a module with a docstring, ``add_arguments(parser)`` and ``run(options)``."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description.splitlines()[0])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in commands.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(command=module.run)
    options = parser.parse_args(arguments)
    options.command(options)
