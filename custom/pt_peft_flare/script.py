"""Federated PEFT of Vision Transformers: for sites, the lead of a federation, and researchers.

The function of the script ``pt-peft``, which has all commands of ``python -m pt_peft`` and ``python -m pt_peft_flare``.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import pt_peft.__main__ as library
import pt_peft_flare.__main__ as federation
from pt_peft.commands.dispatch import Command, command, dispatch, parser
from pt_peft.errors import UserError

COMMANDS: dict[str, Command] = {**library.COMMANDS, **federation.COMMANDS}
SHELLS = ("bash", "zsh")


class _PrintCompletion(argparse.Action):
    """Prints the completion of a shell, in which arguments that are paths complete to files and folders."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, shell: Any, *rest: Any) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            raise UserError(
                "--print-completion: the package 'shtab' is not installed; pip install shtab would be right."
            ) from None
        _complete_paths(parser, shtab.FILE)
        print(shtab.complete(parser, shell))
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser, how: dict[str, str]) -> None:
    for action in parser._actions:  # argparse has no public list
        if action.type is Path:
            vars(action)["complete"] = how
        choices = cast(object, action.choices)
        if isinstance(choices, dict):  # subcommands among them
            for one in cast(dict[str, object], choices).values():
                if isinstance(one, argparse.ArgumentParser):
                    _complete_paths(one, how)


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs the command that `arguments` name."""
    whole = parser("pt-peft", __doc__, COMMANDS)
    whole.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        help="print the completion script of this shell, and end",
    )
    dispatch(whole, arguments)
