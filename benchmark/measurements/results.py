"""How a result becomes a file, and what a command prints of it."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pt_peft.errors import UserError
from pt_peft.files import write_atomically
from pt_peft.schema import read_json


def to_json(result: object) -> str:
    """A result, which may have dataclasses in it, as JSON. Raises ValueError if a number is not finite."""
    return json.dumps(result, indent=1, allow_nan=False, default=asdict)


def write_result(path: Path, result: object) -> None:
    """Writes a result file."""
    write_atomically(path, (to_json(result) + "\n").encode())


def begun(path: Path, settings: Mapping[str, object]) -> dict[str, Any] | None:
    """What a measurement that was stopped has written; None if there is no file.

    Args:
        path: of the result file.
        settings: what all of its runs have in common, its field ``settings``.

    Raises:
        UserError: if the file is of other settings.
    """
    if not path.exists():
        return None
    content: Any = read_json(path)
    found = (content.get("settings") if isinstance(content, dict) else None) or {}
    if found != settings:
        names = [name for name in {**settings, **found} if found.get(name) != settings.get(name)]
        differing = [f"'{name}' {found.get(name)}, not {settings.get(name)}" for name in names]
        raise UserError(f"{path}: has runs of {'; of '.join(differing)}; another --out would be right.")
    return content


def finish(options: argparse.Namespace, result: object, shown: str) -> None:
    """Writes a result to the file of ``--out``, if there is one, and prints it.

    Args:
        options: of the command, with ``out`` and perhaps ``json``.
        result: the content of the file.
        shown: what is printed without ``--json``.
    """
    if options.out:
        write_result(options.out, result)
    print(to_json(result) if vars(options).get("json") else shown)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int | None = None) -> str:
    """A Markdown table.

    Args:
        header: of the columns.
        rows: of cells.
        texts: number of the first columns that are no numbers; None for no column set to the right.
    """
    rule = ["---" if texts is None or place < texts else "---:" for place in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))
