"""What does not go together in an experiment, from `pt_peft.experiment.rules`."""

from collections.abc import Iterable
from typing import Any

from prose import row
from pt_peft.experiment.rules import MODEL_RULES, RULES, SITE_RULES, Rule

ANCHORS = {
    "aggregation.weighting": "aggregation.mean.weighting",
    "server_optimizer.last_rounds": "server_optimizer.swa.last_rounds",
    "payload.up.error_feedback": "payload.up.int8.error_feedback",
}
"""Fields that only some variants of a section have, to the variant that is shown."""

INTRODUCTION = """\
Some settings of [`experiment.json`](experiment.md) exclude others. An experiment that breaks a rule is refused before anything trains, by
one sentence that names both fields, the values seen and what would be right. A test tries every pair.
"""


def page() -> str:
    """The page."""
    return "\n".join(
        (
            f"# What does not go together\n\n{INTRODUCTION}",
            f"## Settings of the experiment {{#settings}}\n\nChecked when the experiment is read.\n\n{_table(RULES)}\n",
            "## Settings and a site's own images {#site}\n\nChecked at each site with its [`site.json`](site.md), and by `check-site`. "
            f"What must be is in `site.json`.\n\n{_table(SITE_RULES, 'site.md')}\n",
            "## Settings and the method's tensors {#tensors}\n\nChecked when a job is written, and when a server or a site plans what "
            f"it exchanges.\n\n{_table(MODEL_RULES)}\n",
        )
    )


def _table(rules: Iterable[Rule[Any]], page_of_field: str = "experiment.md") -> str:
    lines = [row("with", "this must be", "because"), row("---", "---", "---")]
    for rule in rules:
        given = f"{_link(rule.given)} {_values(rule.when)}"
        field = f"{_link(rule.field, page_of_field)} {_values(rule.must_be)}"
        lines.append(row(given, field, rule.because))
    return "\n".join(lines)


def _link(field: str, page_of_field: str = "experiment.md") -> str:
    """A field, leading to its place in the reference: of a method's options, to the method."""
    if field.startswith("method.options."):
        return f"[`{field}`](methods.md#{field.removeprefix('method.options.')})"
    if field.endswith(".name") and field != "method.name":  # a section's variant
        return f"[`{field}`](experiment.md#{field.removesuffix('.name')})"
    return f"[`{field}`]({page_of_field}#{ANCHORS.get(field, field)})"


def _values(words: str) -> str:
    """Values in single quotes, as an experiment writes them: `"mean"`."""
    parts = words.split("'")
    return "".join(f"`{part}`" if place % 2 else part for place, part in enumerate(parts))
