"""Docstrings of the code, as Markdown."""

import ast
import inspect
import re
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


def one_line(docstring: str) -> str:
    """A docstring as one line."""
    return re.sub(r"\s+", " ", inspect.cleandoc(docstring).replace("``", "`"))


def row(*cells: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def field_docs(record: type) -> dict[str, str]:
    """The docstrings below the fields of a class and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(record.__mro__):
        if base.__module__.split(".")[0] != "pt_peft":
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                text = ast.literal_eval(after.value) if isinstance(after.value, ast.Constant) else None
                if isinstance(text, str):
                    docs[field.target.id] = text
    return docs
