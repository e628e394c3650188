"""Writes a report as one HTML page that needs no other file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmark.report.blocks import Figure, Report, Table

FOLDER = Path(__file__).parent


def to_html(report: Report) -> str:
    """The page has a filter by panel, tables that a click sorts, and the figures inline."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["figure"] = lambda block: isinstance(block, Figure)
    return environment.get_template("page.html.jinja").render(
        report=report,
        svg=lambda figure: Markup(figure.svg),  # written by `svg.to_svg`, which escapes
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "script.js").read_text(encoding="utf-8")),
    )
