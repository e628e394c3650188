"""The table of a site's limits, from the schema."""

import json
import re

from benchmark.report.docstrings import field_docs, one_line
from prose import row
from pt_peft.experiment.limits import Limits

LONG = 60
"""Characters of a default that are shown; the reference has all of it."""


def limits() -> str:
    """A table of every limit: its default, and the first sentence of its docstring."""
    docs = field_docs(Limits)
    rows = [row("limit", "default", "what it bounds"), row("---", "---", "---")]
    for name, field in Limits.model_fields.items():
        default = json.dumps(field.default, default=list)
        shown = f"`{default}`" if len(default) <= LONG else f"[a list](../reference/site.md#limits.{name})"
        rows.append(row(f"[`{name}`](../reference/site.md#limits.{name})", shown, _first(one_line(docs[name]))))
    return "\n".join(rows)


def _first(text: str) -> str:
    """The first sentence of `text`, without the names that only the code's reader knows."""
    sentence = re.split(r"(?<=[.:]) (?=[A-Z`\d])", text)[0].rstrip(".")
    return re.sub(r" \(see `[^)]*`\)", "", sentence)
