"""Partitions without skew: all images, equal shares, and the sites that a table names."""

from collections import Counter
from collections.abc import Collection, Sequence

from pt_peft.data.items import SPLITS, Item
from pt_peft.data.names import bare
from pt_peft.data.problems import Report
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


def report_other_sites(items: Sequence[Item], sites: Collection[str], report: Report) -> None:
    """Reports the items of sites that do not take part: an error where a site's name is only written in another way."""
    others = Counter(item.site or "" for item in items if item.site not in sites)
    taking_part = {bare(site): site for site in sites}
    for name in [name for name in others if bare(name) in taking_part]:
        report(
            "name of a site",
            f"partition.kind 'natural': {others.pop(name)} of {len(items)} images come from {name!r}, which differs "
            f"from the site {taking_part[bare(name)]!r}; write both alike.",
        )
    if others:
        counts = ", ".join(f"{name!r} {count}" if name else f"not named {count}" for name, count in others.items())
        report(
            "other sites",
            f"partition.kind 'natural': {others.total()} of {len(items)} images are not taken: they come from none of "
            f"the sites {', '.join(sorted(sites))} ({counts}).",
            "warning",
        )
