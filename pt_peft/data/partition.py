"""Which of a source's images each site has."""

from collections import Counter
from collections.abc import Callable, Sequence

from pt_peft.data.items import SPLITS, Item
from pt_peft.data.splits import shuffled
from pt_peft.errors import UserError

Assign = Callable[[Sequence[Item], str, Sequence[str], int], list[Item]]


def partition(kind: str, items: Sequence[Item], *, name: str, names: Sequence[str], seed: int) -> list[Item]:
    """The items of the site `name`, in the order of `items`.

    A pure function of its arguments, in which neither the order of `names` nor that of `items` matters for which
    items are chosen: every site works out its own share without a message.

    Args:
        kind: one of `PARTITIONS`.
        items: all images of the source, each group in one split.
        names: all sites of the run.

    Raises:
        UserError: if the partition knows no such site.
    """
    return PARTITIONS[kind](items, name, names, seed)


def _everything(items: Sequence[Item], name: str, names: Sequence[str], seed: int) -> list[Item]:
    return list(items)


def _equal_shares(items: Sequence[Item], name: str, names: Sequence[str], seed: int) -> list[Item]:
    """In each split, groups in random order, the largest first, go to the site that has the fewest images so far: shares
    differ by at most the largest group (by one image where images are not grouped)."""
    sites = sorted(set(names))
    if name not in sites:
        raise UserError(f"partition.kind 'iid': site {name!r} is not among the run's sites ({', '.join(sites)}).")
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


def _site_column(items: Sequence[Item], name: str, names: Sequence[str], seed: int) -> list[Item]:
    mine = [item for item in items if item.site == name]
    if not mine:
        known = ", ".join(sorted({str(item.site) for item in items}))
        raise UserError(f"partition.kind 'natural': no image comes from site {name!r}; the table's sites are {known}.")
    return mine


PARTITIONS: dict[str, Assign] = {"none": _everything, "iid": _equal_shares, "natural": _site_column}
"""The function of each ``partition.kind``: (items, name, names, seed) → the site's items."""
