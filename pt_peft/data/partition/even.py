"""Partitions without skew: all images, equal shares, and the sites that a table names."""

from collections import Counter
from collections.abc import Sequence

from pt_peft.data.items import SPLITS, Item
from pt_peft.data.splits import shuffled
from pt_peft.errors import UserError


def everything(items: Sequence[Item], name: str, sites: Sequence[str], seed: int) -> list[Item]:
    """All items."""
    return list(items)


def equal_shares(items: Sequence[Item], name: str, sites: Sequence[str], seed: int) -> list[Item]:
    """Equal shares of each split; they differ by at most the largest group (by one image where images are not grouped).

    Groups in random order, the largest first, go to the site with the fewest images so far.
    """
    mine: set[str] = set()
    for split in SPLITS:
        sizes = Counter(item.group for item in items if item.split == split)
        held = dict.fromkeys(sites, 0)
        for group in sorted(shuffled(sizes, seed, "partition", split), key=sizes.__getitem__, reverse=True):
            site = min(sites, key=held.__getitem__)
            held[site] += sizes[group]
            if site == name:
                mine.add(group)
    return [item for item in items if item.group in mine]


def site_column(items: Sequence[Item], name: str, sites: Sequence[str], seed: int) -> list[Item]:
    """The items that the source assigns to the site. Raises UserError if there are none."""
    mine = [item for item in items if item.site == name]
    if not mine:
        known = ", ".join(sorted({item.site for item in items if item.site})) or "not named"
        raise UserError(f"partition.kind 'natural': no image comes from site {name!r}; the table's sites are {known}.")
    return mine
