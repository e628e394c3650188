"""Why there is no result of a site, from `pt_peft.reasons`."""

import string
from typing import get_args

from benchmark.report.docstrings import field_docs, one_line
from prose import row
from pt_peft.reasons import Reason, ServerReason, SiteReason

INTRODUCTION = """\
Where a site has no result in a round, or none that is taken, the lead finds a code in `metrics.json` (`left_out`), with
the fields below and a `sentence`. What the site says is on a closed list: no text of the site's own leaves it. Numbers
are rounded to six digits, and a name stays only if the lead knows it already: a field of a schema, a tensor, a method, a
task, a word of the experiment. The site's `log.txt` has the whole sentence, with paths, columns and values;
`check-site` says the same beforehand.
"""


def page() -> str:
    """The page."""
    return "\n".join(
        (
            f"# Reasons\n\n{INTRODUCTION}",
            f"## What a site says {{#site}}\n\n{_table(get_args(SiteReason))}\n",
            f"## What the server says {{#server}}\n\n{_table(get_args(ServerReason))}\n",
        )
    )


def _table(kinds: tuple[type[Reason], ...]) -> str:
    lines = [row("code", "why", "in words", "fields"), row("---", "---", "---", "---")]
    for kind in kinds:
        docs = field_docs(kind)
        fields = [name for name in kind.model_fields if name != "code"]
        described = (f"`{name}`: {one_line(docs[name])}" if name in docs else f"`{name}`" for name in fields)
        lines.append(
            row(
                f"`{kind.model_fields['code'].default}`",
                one_line(kind.__doc__ or ""),
                _words(kind),
                "<br>".join(described),
            )
        )
    return "\n".join(lines)


def _words(kind: type[Reason]) -> str:
    """The sentence, with … for the fields that are always set."""
    parts = string.Formatter().parse(kind.says)
    return "".join(text + ("…" if name and kind.model_fields[name].is_required() else "") for text, name, _, _ in parts)
