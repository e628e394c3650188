"""Subcommands of a command line, and the exit codes of all commands."""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Protocol

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError


class Command(Protocol):
    """One subcommand: a module whose docstring describes it, first in one line, and shows an example."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments, each with a help text."""

    def run(self, options: argparse.Namespace) -> None:
        """Does the work. Raises UserError for a mistake of the user's."""


class Main(Protocol):
    """The function that a command line starts with; it returns the exit code."""

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Runs with `arguments`, or with those of the process."""
        ...


def command(main: Callable[[list[str] | None], None]) -> Main:
    """Makes `main` return an exit code: 0, 1 after printing a mistake to standard error, or 130 if interrupted."""

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


def parser(program: str, description: str | None, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Builds the parser of all subcommands; no command runs.

    Args:
        program: the package that ``python -m`` runs.
        description: the docstring of its ``__main__``.
        commands: the module of each subcommand, by the name that the user types.
    """
    whole = argparse.ArgumentParser(prog=f"python -m {program}", description=_summary(description))
    subparsers = whole.add_subparsers(required=True, metavar="COMMAND")
    for name, module in commands.items():
        subparser = subparsers.add_parser(
            name,
            help=_summary(module.__doc__),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(command=module.run)
    return whole


def dispatch(
    program: str, description: str | None, commands: Mapping[str, Command], arguments: list[str] | None
) -> None:
    """Runs the subcommand that `arguments` name; see `parser` for the others."""
    options = parser(program, description, commands).parse_args(arguments)
    options.command(options)


def _summary(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]
