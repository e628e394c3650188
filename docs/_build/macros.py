r"""The calls ``{{ name(arguments) }}`` in a page: values, tables and pictures. ``\{{`` stands for two braces.

Arguments are Python literals. What a call cannot find stops the build.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imports_table
import limits_table
import methods_page
import suite_results
import tags_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmark" / "results"
PICTURES = ROOT / "docs" / "images"

CALL = re.compile(r"(?<!\\)\{\{\s*(\w+)\((.*?)\)\s*\}\}", re.DOTALL)
STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
SCALE = re.compile(r"^(.*?)\s*([*/])\s*([\d.]+)$")

NOTHING = "–"


class MacroError(Exception):
    """A call that cannot be carried out."""


def expand(markdown: str, page: str) -> str:
    """`markdown` with every call replaced by its result. Raises MacroError naming `page` and the call."""

    def replaced(found: re.Match[str]) -> str:
        name, arguments = found.groups()
        try:
            if name not in MACROS:
                raise MacroError(f"there is no '{name}'; there are {', '.join(MACROS)}")
            return MACROS[name](*ast.literal_eval(f"[{arguments}]"))
        except (MacroError, ValueError, SyntaxError, TypeError, OSError) as error:
            raise MacroError(f"{page}: {found.group()}: {error}") from error

    return CALL.sub(replaced, markdown).replace(r"\{{", "{{")


def result(file: str, path: str, form: str = "") -> str:
    """The value at `path` of ``benchmark/results/<file>``, formatted."""
    return format(value_at(load(file), path), form)


def table(
    file: str, path: str, columns: dict[str, str | tuple[str, str]], chosen: list[str] | dict[str, str] | None = None
) -> str:
    """A Markdown table of the list or mapping at `path`.

    Args:
        columns: heading to path in a row, or to (path, format); the path ``key`` is a row's name in a mapping.
        chosen: rows by name, in order; a mapping also renames them.
    """
    found = value_at(load(file), path) if path else load(file)
    named = found if isinstance(found, dict) else {_name(row, index): row for index, row in enumerate(found)}
    names = dict.fromkeys(named) if chosen is None else chosen
    rows = []
    for name in names:
        if name not in named:
            raise MacroError(f"there is no row '{name}'; there are {', '.join(map(str, named))}")
        label = chosen[name] if isinstance(chosen, dict) else name
        key = {"key": label, **({"name": label} if isinstance(chosen, dict) else {})}
        rows.append({**named[name], **key} if isinstance(named[name], dict) else {"value": named[name], **key})
    cells = [[_cell(row, column) for column in columns.values()] for row in rows]
    right = [all(_is_number(line[place]) for line in cells) for place in range(len(columns))]
    lines = [list(columns), ["---:" if numbers else "---" for numbers in right], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(file: str, description: str) -> str:
    """The SVG ``docs/images/<file>`` inside the page, so that it takes the page's colours."""
    svg = (PICTURES / file).read_text(encoding="utf-8")
    svg = re.sub(r"<\?xml.*?\?>|<!--.*?-->", "", svg, flags=re.DOTALL).strip()
    label = description.replace('"', "&quot;")
    svg = re.sub(r' (role|aria-label|font-family)="[^"]*"', "", svg, count=3)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    one_line = re.sub(r"\s*\n\s*", " ", svg)  # a blank line would end the block of HTML
    return f'<figure class="picture">{one_line}</figure>'


MACROS: dict[str, Callable[..., str]] = {
    "result": result,
    "table": table,
    "picture": picture,
    "methods": methods_page.table,
    "limits": limits_table.limits,
    "floors": imports_table.floors,
    "forbidden_imports": imports_table.forbidden,
    "answers": suite_results.answers,
    "gates": suite_results.gates,
    "panel": suite_results.panel,
    "rates": suite_results.rates,
    "variants": suite_results.variants,
    "tags": tags_table.table,
}


def load(file: str) -> Any:
    """The content of a result file, a list for JSON lines. Raises OSError if it is not there."""
    text = (RESULTS / file).read_text(encoding="utf-8")
    if file.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)


def value_at(content: Any, path: str) -> Any:
    """The value at ``a.b[0].c[name=full]``, scaled by a trailing ``* 100`` or ``/ 1000``. Raises MacroError."""
    if scaled := SCALE.match(path):
        path, sign, factor = scaled.groups()
        value = value_at(content, path)
        return value * float(factor) if sign == "*" else value / float(factor)
    value = content
    for field, selector in STEP.findall(path):
        value = _chosen(value, selector, path) if selector else _field(value, field, path)
    return value


def _field(value: Any, field: str, path: str) -> Any:
    if not isinstance(value, dict) or field not in value:
        known = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise MacroError(f"'{path}': there is no '{field}' in {known}")
    return value[field]


def _chosen(value: Any, selector: str, path: str) -> Any:
    if not isinstance(value, list):
        raise MacroError(f"'{path}': [{selector}] needs a list")
    if selector.isdecimal():
        return value[int(selector)]
    wanted = [part.strip().partition("=") for part in selector.split(",")]
    found = [one for one in value if all(str(value_at(one, field)) == right for field, _, right in wanted)]
    if len(found) != 1:
        raise MacroError(f"'{path}': {len(found)} entries have {selector}")
    return found[0]


def _name(row: Any, index: int) -> str:
    return str(row["name"]) if isinstance(row, dict) and "name" in row else str(index)


def _cell(row: dict[str, Any], column: str | tuple[str, str]) -> str:
    path, form = (column, "") if isinstance(column, str) else column
    try:
        value = value_at(row, path)
    except MacroError:
        return NOTHING
    return NOTHING if value is None else format(value, form)


def _is_number(cell: str) -> bool:
    return cell == NOTHING or re.fullmatch(r"[-+±\d.,%\s]+", cell) is not None
