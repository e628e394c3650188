"""The parsers of the three command lines, from which the documentation makes their reference."""

import argparse
import io

import pytest

import benchmark.__main__ as benchmark_cli
import pt_peft.__main__ as pt_peft_cli
import pt_peft_flare.__main__ as flare_cli
from benchmark.commands import federation
from pt_peft.commands import dispatch
from pt_peft.errors import UserError

PROGRAMS = {"pt_peft": pt_peft_cli, "pt_peft_flare": flare_cli, "benchmark": benchmark_cli}
COMMANDS = [(program, name) for program, module in PROGRAMS.items() for name in module.COMMANDS]


def subparser(program: str, name: str) -> argparse.ArgumentParser:
    module = PROGRAMS[program]
    (subparsers,) = (
        action
        for action in dispatch.parser(program, module.__doc__, module.COMMANDS)._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return subparsers.choices[name]


def description(program: str, name: str) -> str:
    text = subparser(program, name).description
    assert text
    return text


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_shows_an_example(program, name):
    summary, _, rest = description(program, name).partition("\n")
    assert summary.endswith(".")
    assert f"Example:\n    python -m {program} {name} " in rest


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_the_examples_parse(program, name, monkeypatch):
    monkeypatch.setattr(federation.socket, "create_server", lambda address: io.BytesIO())  # the port may be in use
    for example in description(program, name).split("Example:\n")[1].strip().splitlines():
        subparser(program, name).parse_args(example.split()[4:])


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_argument_has_a_help_text_that_tells_its_default(program, name):
    for action in subparser(program, name)._actions:
        assert action.help, action.dest
        text = action.help % {**vars(action), "prog": program}
        if not action.required and action.nargs != 0 and action.default not in (None, []):
            assert f"(default: {action.default})" in text, action.dest
        if isinstance(action.type, type) and issubclass(action.type, int | float):
            assert action.required or "default" in text, action.dest


def test_a_mistake_of_the_users_is_one_line_and_exit_code_1(capsys):
    @dispatch.command
    def main(arguments: list[str] | None = None) -> None:
        raise UserError("--sites is 0; at least 1 would be right.")

    assert main() == 1
    assert capsys.readouterr().err == "error: --sites is 0; at least 1 would be right.\n"


def test_an_interrupted_command_ends_with_exit_code_130(capsys):
    @dispatch.command
    def main(arguments: list[str] | None = None) -> None:
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "interrupted\n"
