"""Subcommands of a command line, their versions, and the exit codes of all commands. Imports no torch."""

import argparse
import functools
import os
import select
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Protocol

from pt_peft.errors import UserError, one_line
from pt_peft.exchange.tensors import TensorError

SHOWN_PACKAGES = ("nvflare", "torch", "timm", "peft", "monai")
"""What ``--version`` names beside ours and Python's."""


class ExitCode(IntEnum):
    """What a command line tells the shell."""

    DONE = 0
    MISTAKE = 1
    USAGE = 2
    INTERRUPTED = 130
    UNREAD = 141


MEANINGS: dict[ExitCode, str] = {
    ExitCode.DONE: "Done. Warnings are on standard error.",
    ExitCode.MISTAKE: "A mistake in a file, a field or a value, or what the command looks for is wrong: one sentence "
    "on standard error begins with `error:`. A traceback instead is a bug.",
    ExitCode.USAGE: "The arguments are not those of the command; the usage is on standard error, and nothing was done.",
    ExitCode.INTERRUPTED: "Interrupted by Ctrl-C.",
    ExitCode.UNREAD: "Who reads the output has ended before it did, as `head` does.",
}
"""For the documentation."""


class Command(Protocol):
    """One subcommand: a module whose docstring describes it, first in one line, and shows an example.

    Its import takes no torch and no FLARE: help is there at once. ``run`` imports what it needs.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments, each with a help text."""

    def run(self, options: argparse.Namespace) -> None:
        """Does the work. Raises UserError for a mistake of the user's."""


class Main(Protocol):
    """The function that a command line starts with; it returns the exit code."""

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Runs with `arguments`, or with those of the process."""
        ...


def _is_unread() -> bool:
    """Whether nobody reads the output any more."""
    output = select.poll()
    output.register(sys.stdout, 0)  # it tells of a closed pipe anyway
    return bool(output.poll(0))


def command(main: Callable[[list[str] | None], None]) -> Main:
    """Makes `main` return an `ExitCode`, after printing a mistake to standard error. argparse ends usage by itself."""

    @functools.wraps(main)
    def with_exit_code(arguments: list[str] | None = None) -> int:
        try:
            main(arguments)
            sys.stdout.flush()
        except (UserError, TensorError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails at its end
                return ExitCode.UNREAD
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            return ExitCode.MISTAKE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return ExitCode.INTERRUPTED
        return ExitCode.DONE

    return with_exit_code


class _PrintVersion(argparse.Action):
    """Prints the versions, a line each; those of packages come from what pip has noted of them."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        import pt_peft

        found = {"pt-peft": pt_peft.__version__}
        for name in SHOWN_PACKAGES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
        found["Python"] = platform.python_version()
        print("\n".join(f"{name} {value}" for name, value in found.items()))
        parser.exit()


def parser(program: str, description: str | None, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Builds the parser of all subcommands; no command runs.

    Args:
        program: the words that start it, such as ``python -m pt_peft``.
        description: the docstring of its module.
        commands: the module of each subcommand, by the name that the user types.
    """
    whole = argparse.ArgumentParser(prog=program, description=_summary(description))
    packages = f"{', '.join(SHOWN_PACKAGES)} and Python"
    whole.add_argument(
        "--version", action=_PrintVersion, nargs=0, help=f"print the versions of this package, {packages}, and end"
    )
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


def dispatch(parser: argparse.ArgumentParser, arguments: list[str] | None) -> None:
    """Runs the subcommand that `arguments` name; `parser` is a `parser` of subcommands."""
    options = parser.parse_args(arguments)
    options.command(options)


def _summary(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]
