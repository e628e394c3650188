"""The table of TensorBoard's tags, from `pt_peft_flare.curves`."""

from prose import row
from pt_peft_flare.curves import MOST_CLASSES, TAGS
from pt_peft_flare.run_record import METRICS, SPLITS

NOTE = """\
SPLIT is {splits}; the `own_` ones are of a site's own model (`training.ditto`), in `global` at the end alone. `test` is of the final aggregate alone.
METRIC is {metrics}; the last two for `data.task` `ordinal`, and a pooled one only where confusion counts give it. CLASS is
one of `data.classes`, if they are three to {most}, or two of `multilabel`: the areas of two classes that exclude each other
are both `auroc`. MODEL is FLARE's name of a model in its [cross-site evaluation](recipes.md#cross-site-evaluation)."""


def table() -> str:
    """A row for each tag, and what the words in capitals stand for."""
    rows = [row("tag", "in a site's run", "in `global`"), row("---", "---", "---")]
    rows += [row(f"`{tag.name}`", tag.at_site or "–", tag.at_global or "–") for tag in TAGS]
    note = NOTE.format(splits=_listed(SPLITS), metrics=_listed(METRICS), most=MOST_CLASSES)
    return "\n".join((*rows, "", note))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
