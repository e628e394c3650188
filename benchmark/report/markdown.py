"""Writes a report as GitHub's Markdown."""

import re

from benchmark.report.blocks import Figure, Report, Section, Table


def to_markdown(report: Report) -> str:
    """Figures are linked by their files, which lie beside the report."""
    parts = [f"# {_plain(report.title)}"]
    parts += [f"> **Mind:** {_plain(warning)}" for warning in report.warnings]
    parts += [_section(section) for section in report.sections]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {_plain(section.title)}", *(to_block(block) for block in section.blocks)])


def to_block(block: Table | Figure | str) -> str:
    """A table, a linked figure or a paragraph."""
    if isinstance(block, Figure):
        return f"![{_plain(block.caption)}]({block.file})"
    if isinstance(block, Table):
        rule = ["---:" if numeric else "---" for numeric in block.numeric]
        rows = [[_plain(value.text) for value in row] for row in block.rows]
        lines = ["| " + " | ".join(row) + " |" for row in ([_plain(name) for name in block.header], rule, *rows)]
        return "\n".join([f"**{_plain(block.caption)}**", "", *lines])
    return _plain(block)


def _plain(text: str) -> str:
    """Escapes what Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
