"""Groups of images, patients for one, that the paths of their files name."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pt_peft.data.items import Item
from pt_peft.data.listing import plain_name, shown
from pt_peft.data.names import clean, says_unknown
from pt_peft.data.problems import Report, Tally


def grouped(items: Sequence[Item], pattern: str, where: Path, report: Report) -> list[Item]:
    """`items`, each in the group that `pattern` finds in the path of its file.

    Args:
        items: images, in groups of their own.
        pattern: ``data.group_pattern`` of `site.json`.
        where: the folder or zip archive.
        report: takes, in a sentence for each cause, images in whose path no group is found, and images of groups that
            are in another split too.
    """
    tally = Tally(str(where), "images")
    found = re.compile(pattern)
    first_of: dict[str, Item] = {}
    taken: list[Item] = []
    for item in items:
        name = plain_name(item.file)
        match = found.search(name)
        group = clean(match["group"] or "") if match else ""
        if says_unknown(group):
            cause = f"data.group_pattern of site.json, {pattern!r}, does not find their group"
            tally.add("no group", cause, shown(name))
            continue
        first = first_of.setdefault(group, item)
        if first.split != item.split:
            tally.add(
                "group in two splits",
                "others of their group, which data.group_pattern of site.json finds, are in another split; put each "
                "group in one",
                f"{shown(name)} of group {group!r} like {shown(plain_name(first.file))}",
            )
            continue
        taken.append(replace(item, group=group))
    tally.report(len(items), report)
    return taken
