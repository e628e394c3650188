"""The parsers of the command lines, of which the reference is made: examples, help, versions, completion."""

import argparse
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

import benchmark.__main__ as benchmark_cli
import exit_codes_page
import pt_peft
import pt_peft.__main__ as library_cli
import pt_peft_flare.__main__ as flare_cli
from benchmark.commands import federation
from pt_peft.commands import dispatch
from pt_peft.errors import UserError
from pt_peft_flare import script

PROGRAMS = {"pt-peft": script.COMMANDS, "python -m benchmark": benchmark_cli.COMMANDS}
COMMANDS = [(program, name) for program, commands in PROGRAMS.items() for name in commands]
HEAVY = ("torch", "transformers", "timm", "peft", "monai", "nvflare", "tenseal", "matplotlib", "tqdm", "scipy")
"""What no help needs."""
TABLES = {"advise", "check-site", "ledger", "methods", "partition", "show-job", "status"}
"""Commands that print a table, or more than a line."""


def subparser(program: str, name: str) -> argparse.ArgumentParser:
    (subparsers,) = (
        action
        for action in dispatch.parser(program, "", PROGRAMS[program])._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return subparsers.choices[name]


def description(program: str, name: str) -> str:
    text = subparser(program, name).description
    assert text
    return text


def test_the_script_has_the_commands_of_both_packages():
    assert set(script.COMMANDS) == {*library_cli.COMMANDS, *flare_cli.COMMANDS}
    assert len(script.COMMANDS) == len(library_cli.COMMANDS) + len(flare_cli.COMMANDS)


def test_commands_that_print_a_table_print_json_too():
    parsers = {name: subparser("pt-peft", name) for name in script.COMMANDS}
    assert {name for name, one in parsers.items() if "--json" in one._option_string_actions} == TABLES


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_shows_an_example(program, name):
    summary, _, rest = description(program, name).partition("\n")
    assert summary.endswith(".")
    assert f"Example:\n    {program} {name} " in rest


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_the_examples_parse(program, name, monkeypatch):
    monkeypatch.setattr(federation.socket, "create_server", lambda address: io.BytesIO())  # the port may be in use
    for example in description(program, name).split("Example:\n")[1].strip().splitlines():
        subparser(program, name).parse_args(example.strip().removeprefix(f"{program} {name} ").split())


def test_help_needs_neither_torch_nor_flare():
    """By modules, as a time would be that of the machine."""
    code = f"""
import contextlib, io, json, sys
from pt_peft_flare.script import COMMANDS, main
found = {{}}
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)
    found[" ".join(arguments)] = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == 2 + len(script.COMMANDS)
    assert {name: modules for name, modules in found.items() if modules} == {}


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


def test_words_of_others_do_nothing_to_the_screen(capsys):
    @dispatch.command
    def main(arguments: list[str] | None = None) -> None:
        raise UserError("'\x1b[2J\nerror: none' is no app.")

    assert main() == 1
    assert capsys.readouterr().err == "error: ' [2J error: none' is no app.\n"


def test_an_interrupted_command_ends_with_exit_code_130(capsys):
    @dispatch.command
    def main(arguments: list[str] | None = None) -> None:
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_output_that_nobody_reads_is_exit_code_141():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pt_peft", "partition", "lora_vpt", "--sites", "2"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_a_mistake():
    program = "from pt_peft.commands.dispatch import command; import sys\n"
    program += "@command\ndef main(arguments=None): raise BrokenPipeError(32, 'Broken pipe')\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 32] Broken pipe\n")


def test_the_versions(capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["--version"])
    assert ended.value.code == dispatch.ExitCode.DONE
    packages = ("nvflare", "torch", "timm", "peft", "monai")
    assert capsys.readouterr().out.splitlines() == [
        f"pt-peft {pt_peft.__version__}",
        *(f"{name} {importlib.metadata.version(name)}" for name in packages),
        f"Python {platform.python_version()}",
    ]


def test_the_version_of_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "SHOWN_PACKAGES", ("no-such-package",))
    with pytest.raises(SystemExit):
        script.main(["--version"])
    assert "no-such-package not installed" in capsys.readouterr().out.splitlines()


def test_a_wrong_argument_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["methods", "--no-such-option"])
    assert ended.value.code == dispatch.ExitCode.USAGE
    assert "usage: pt-peft methods" in capsys.readouterr().err


def test_without_shtab_completion_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert script.main(["--print-completion", "bash"]) == 1
    sentence = "--print-completion: the package 'shtab' is not installed; pip install shtab would be right."
    assert capsys.readouterr().err == f"error: {sentence}\n"


TYPED = {
    "part": "partition",
    "export --form": "--format",
    "export --format on": "onnx",
    "check-site si": "site.json",
}
"""What is typed before TAB, and what that makes of its last word."""
COMPLETE = {
    "bash": """
source _pt-peft
for words; do
  COMP_WORDS=($words) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _shtab_pt_peft
  echo "${words% *} ${COMPREPLY[*]}" >> completed
done
""",
    # Only at a terminal, which is one of zsh's own.
    "zsh": r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; bindkey -e'
for words; do zpty -n -w shell "$words"$'\t\C-aprint -r -- "\C-e" >> completed\n'; done
until [[ -f completed && $(wc -l < completed) == $# ]]; do sleep 0.1; done
zpty -d shell
""",
}


@pytest.mark.parametrize("shell", script.SHELLS)
def test_completion_knows_commands_options_and_files(shell, capsys, tmp_path):
    pytest.importorskip("shtab", reason="shtab is not installed")
    with pytest.raises(SystemExit):
        script.main(["--print-completion", shell])
    text = capsys.readouterr().out
    assert all(name in text for name in script.COMMANDS)
    if not (found := shutil.which(shell)):
        pytest.skip(f"{shell} is not there: its completion was written, and not tried")
    (tmp_path / "_pt-peft").write_text(text)
    (tmp_path / "site.json").touch()
    subprocess.run([found, "-n", "_pt-peft"], cwd=tmp_path, check=True)
    words = [f"pt-peft {typed}" for typed in TYPED]
    subprocess.run([found, "-c", COMPLETE[shell], shell, *words], cwd=tmp_path, check=True, timeout=60)
    completed = [line.split()[-1] for line in (tmp_path / "completed").read_text().splitlines()]
    assert completed == [*TYPED.values()]


def test_the_page_of_exit_codes():
    page = exit_codes_page.page()
    codes = re.findall(r"^\| `(\d+)` \| \S", page, re.MULTILINE)
    assert codes == ["0", "1", "2", "130", "141"] == [str(code.value) for code in dispatch.ExitCode]
    also = dict(re.findall(r"^\| \[`(.+?)`\].*?\| (if .*?) \|$", page, re.MULTILINE))
    assert {f"pt-peft {name}" for name in ("check-site", "advise", "show-job", "ledger")} <= also.keys()
    assert also["pt-peft show-job"] == "if the site refuses the job"
