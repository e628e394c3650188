"""What does not go together in an experiment, from `pt_peft.experiment.rules`."""

from collections.abc import Iterable
from typing import Any

from prose import row
from pt_peft.experiment.rules import MODEL_RULES, RULES, Rule

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
            "## Settings and the method's tensors {#tensors}\n\nChecked when a job is written, and when a server or a site plans what "
            f"it exchanges.\n\n{_table(MODEL_RULES)}\n",
        )
    )


def _table(rules: Iterable[Rule[Any]]) -> str:
    lines = [row("with", "that is", "this field", "must be", "because"), row("---", "---", "---", "---", "---")]
    for rule in rules:
        lines.append(row(_code(rule.given), _values(rule.when), _code(rule.field), _values(rule.must_be), rule.because))
    return "\n".join(lines)


def _code(field: str) -> str:
    return f"`{field}`"


def _values(words: str) -> str:
    """Values in single quotes, as an experiment writes them: `"mean"`."""
    parts = words.split("'")
    return "".join(f"`{part}`" if place % 2 else part for place, part in enumerate(parts))
