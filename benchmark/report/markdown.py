"""A report as GitHub's Markdown."""

import re

from benchmark.report.blocks import Figure, Report, Section, Table


def to_markdown(report: Report) -> str:
    """Figures are referred to by their files, which lie beside the report."""
    parts = [f"# {_plain(report.title)}"]
    parts += [f"> **Mind:** {_plain(warning)}" for warning in report.warnings]
    parts += [_section(section) for section in report.sections]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {_plain(section.title)}", *(_block(block) for block in section.blocks)])


def _block(block: Table | Figure | str) -> str:
    if isinstance(block, Figure):
        return f"![{_plain(block.caption)}]({block.file})"
    if isinstance(block, Table):
        lines = [block.header, ["---", *["---:"] * (len(block.header) - 1)], *([value.text for value in row] for row in block.rows)]
        rows = [lines[0], *lines[2:]]
        shown = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
        shown.insert(1, "| " + " | ".join(lines[1]) + " |")
        return "\n".join([f"**{_plain(block.caption)}**", "", *shown])
    return _plain(block)


def _plain(text: str) -> str:
    """Without what Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
