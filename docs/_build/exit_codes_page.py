"""The exit codes, from `pt_peft.commands.dispatch` and the docstrings of the commands."""

import re
from collections.abc import Iterator, Mapping

import benchmark.__main__ as benchmark
from benchmark.report.docstrings import one_line
from prose import row
from pt_peft.commands.dispatch import MEANINGS, Command
from pt_peft_flare import script

SAID = re.compile(r"ends with exit code 1 (if [^.]*)\.", re.IGNORECASE)
"""How a docstring says what ends a command with exit code 1, besides a mistake of the user's."""

INTRODUCTION = """\
`pt-peft`, `python -m pt_peft`, `python -m pt_peft_flare`, `python -m benchmark` and the single measurements of the benchmark end with
one of these.
"""
SIMULATOR = """\
## FLARE's simulator {#simulator}

`nvflare simulator` ends with 0 if the job did all its work, and with another code if not; the last sentence says why. For a
component path that does not exist FLARE prints a traceback of its own before that sentence.
"""


def page() -> str:
    """The page."""
    lines = ["# Exit codes\n", INTRODUCTION, row("code", "means"), row("---", "---")]
    lines += [row(f"`{code.value}`", meaning) for code, meaning in MEANINGS.items()]
    lines += ["", "## What else is exit code 1 {#one}\n", row("command", "exit code 1 also"), row("---", "---")]
    lines += _rows("pt-peft", script.COMMANDS)
    lines += _rows("python -m benchmark", benchmark.COMMANDS)
    return "\n".join([*lines, "", SIMULATOR])


def _rows(program: str, commands: Mapping[str, Command]) -> Iterator[str]:
    for name, module in commands.items():
        if said := SAID.search(one_line(module.__doc__ or "")):
            yield row(f"[`{program} {name}`](command-line.md#{program.split()[-1]}-{name})", said[1])
