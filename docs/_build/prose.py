"""Docstrings of the code, as Markdown."""

import inspect
import textwrap


def markdown(docstring: str) -> str:
    """``names`` in double backticks become `names`; indented equations, and commands, become blocks of text."""
    lines = inspect.cleandoc(docstring).replace("``", "`").split("\n")
    out: list[str] = []
    equation: list[str] = []
    for line in [*lines, ""]:
        if line.startswith(("    ", "python -m ")) or (equation and not line):
            equation.append(line)
            continue
        if equation:
            out += ["```text", textwrap.dedent("\n".join(equation)).strip("\n"), "```", ""]
            equation = []
        out.append(line)
    if equation:
        out += ["```text", textwrap.dedent("\n".join(equation)).strip("\n"), "```"]
    return "\n".join(out).strip()


def row(*cells: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
