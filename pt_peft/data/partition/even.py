"""Partitions that draw no skew: all, equal shares, and what a table says."""

from collections import Counter
from collections.abc import Sequence

from pt_peft.data.items import SPLITS, Item
from pt_peft.data.splits import shuffled
from pt_peft.errors import UserError


def everything(items: Sequence[Item], name: str, sites: Sequence[str], seed: int) -> list[Item]:
    """All items: the site has what it was given."""
    return list(items)


def equal_shares(items: Sequence[Item], name: str, sites: Sequence[str], seed: int) -> list[Item]:
    """In each split, groups in random order, the largest first, go to the site that has the fewest images so far: shares
    differ by at most the largest group (by one image where images are not grouped).
    """
    mine: set[str] = set()
    for split in SPLITS:
        sizes = Counter(item.group for item in items if item.split == split)
        held = dict.fromkeys(sites, 0)
        for group in sorted(shuffled(sizes, seed, "partition", split), key=sizes.get, reverse=True):
            site = min(sites, key=held.get)
            held[site] += sizes[group]
            if site == name:
                mine.add(group)
    return [item for item in items if item.group in mine]


def site_column(items: Sequence[Item], name: str, sites: Sequence[str], seed: int) -> list[Item]:
    """The items that come from the site, as the source says. Raises UserError if there is none."""
    mine = [item for item in items if item.site == name]
    if not mine:
        known = ", ".join(sorted({item.site for item in items if item.site})) or "not told"
        raise UserError(f"partition.kind 'natural': no image comes from site {name!r}; the table's sites are {known}.")
    return mine
