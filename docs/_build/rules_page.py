"""What does not go together in an experiment, from `pt_peft.experiment.rules`."""

try:
    from pt_peft.experiment.rules import RULES
except ImportError:
    RULES = ()
from prose import row

INTRODUCTION = """\
Some settings of `experiment.json` exclude others. An experiment that breaks one of these rules is refused when it is read, before anything
runs, with the field, the value seen and the reason.
"""


def page() -> str:
    """The page."""
    return f"# What does not go together\n\n{INTRODUCTION}\n{table()}\n"


def table() -> str:
    """One row a rule."""
    lines = [row("field", "must be", "together with", "because"), row("---", "---", "---", "---")]
    for rule in RULES:
        lines.append(row(f"`{rule.field}`", rule.must_be, rule.together_with, rule.because))
    return "\n".join(lines)
