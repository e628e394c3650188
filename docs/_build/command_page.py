"""The reference of the command line, from the parsers."""

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pt_peft_flare.__main__ as federation
from benchmark.report.docstrings import one_line
from prose import markdown, row

ROOT = Path(__file__).parents[2]

TOLD = re.compile(r"[;,]?\s*\((?:by )?default:? ([^()]*(?:\([^()]*\)[^()]*)*)\)$")
"""A default that the help tells, which has a column of its own here."""

INTRODUCTION = """\
Two programs, each with a few commands, and single measurements of the benchmark with a program of their own. Every command that prints a
table also takes `--json`. What a program tells the shell is on the page of [exit codes](exit-codes.md).

| program | for whom |
|---|---|
| [`pt-peft`](#pt-peft) | hospitals, the lead of a federation, researchers; `pip install` brings it |
| [`python -m benchmark`](#benchmark) | the benchmark; in a clone of the repository |
| [`python -m benchmark.…`](#measurements) | single measurements; in a clone of the repository |

Where the script is not on the path, `python -m pt_peft` and `python -m pt_peft_flare` have the same commands: the first those that need no
FLARE, the second {federation}.
"""


class _Built(BaseException):
    """Leaves a program at the moment it would read its arguments; no handler of errors is for it."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def page() -> str:
    """The page."""
    names = ", ".join(f"`{name}`" for name in federation.COMMANDS)
    lines = ["# The command line\n", INTRODUCTION.format(federation=names)]
    for module in ("pt_peft_flare.script", "benchmark.__main__"):
        parser = parser_of(module)
        program = parser.prog.split()[-1]
        lines.append(f"## `{parser.prog}` {{#{program}}}\n")
        lines += _program(parser, program)
    lines.append("## Single measurements {#measurements}\n")
    for module in measurements():
        program = module.removesuffix(".__main__")
        lines.append(f"### `{program}` {{#{program}}}\n")
        lines += _command(parser_of(module))
    return "\n".join(lines)


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that ``main`` of `module` reads its arguments by.

    Raises:
        RuntimeError: if it makes none.
    """

    def leave(parser: argparse.ArgumentParser, *arguments: Any, **named: Any) -> None:
        raise _Built(parser)

    try:
        with patch.object(argparse.ArgumentParser, "parse_args", leave):
            importlib.import_module(module).main([])
    except _Built as built:
        return built.parser
    raise RuntimeError(f"{module}.main reads no arguments")


def measurements() -> list[str]:
    """Modules of the benchmark that are programs with arguments of their own."""
    found = []
    for file in sorted((ROOT / "benchmark").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text and "ArgumentParser(" in text:
            found.append(".".join(file.relative_to(ROOT).with_suffix("").parts))
    return found


def _program(parser: argparse.ArgumentParser, program: str) -> Iterator[str]:
    yield f"{one_line(parser.description or '')}\n"
    options = [action for action in parser._actions if action.option_strings]
    yield from _arguments(parser, options)
    for action in parser._actions:  # argparse has no public list
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"### `{program} {name}` {{#{program}-{name}}}\n"
                yield from _command(sub)


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=88)
    usage = re.sub(r"\n +", "\n    ", parser.format_usage().removeprefix("usage: ").rstrip())
    yield f"```text\n{usage}\n```\n"
    yield f"{markdown(parser.description or '')}\n"
    yield from _arguments(parser, parser._actions)


def _arguments(parser: argparse.ArgumentParser, actions: Sequence[argparse.Action]) -> Iterator[str]:
    actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
    if not actions:
        return
    yield "| argument | default | what it is |\n| --- | --- | --- |"
    for action in actions:
        text = one_line(_help(parser, action))
        told = TOLD.search(text)
        default = _default(action) or (told[1] if told else "")
        yield row(_names(action), default, TOLD.sub("", text))
    yield ""


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    metavar = action.metavar or action.dest.upper()
    return " ".join(metavar) if isinstance(metavar, tuple) else metavar


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.default is None or action.default is False or action.default is argparse.SUPPRESS or action.default == []:
        return ""
    value = action.default
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return re.sub(r"(?<![`\w])(--[a-z][\w-]*)", r"`\1`", text)
