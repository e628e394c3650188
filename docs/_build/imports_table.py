"""Which room may import which, from the contracts of import-linter in pyproject.toml, which ``make lint`` checks."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.report.docstrings import one_line
from prose import row

ROOT = Path(__file__).parents[2]


def floors(package: str) -> str:
    """The rooms of `package` from the top floor to the bottom, each with its docstring's first line."""
    (contract,) = [one for one in _contracts() if one.get("containers") == [package]]
    lines = [row("floor", "room", "what it is about"), row("---:", "---", "---")]
    height = len(contract["layers"])
    for place, layer in enumerate(contract["layers"]):
        for room in layer.split(" | "):
            lines.append(row(str(height - place), f"`{room}`", _about(package, room)))
    return "\n".join(lines)


def forbidden() -> str:
    """The contracts besides the floors, as a list."""
    return "\n".join(_forbidden())


def _forbidden() -> Iterator[str]:
    for contract in _contracts():
        if contract["type"] == "forbidden":
            sources = ", ".join(f"`{one}`" for one in contract["source_modules"])
            targets = ", ".join(f"`{one}`" for one in contract["forbidden_modules"])
            yield f"* {contract['name']}: {sources} may not import {targets}."


def _contracts() -> list[dict[str, Any]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def _about(package: str, room: str) -> str:
    """The first line of the docstring, read without an import."""
    folder = ROOT / package / room
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return one_line(docstring.split("\n\n")[0])
