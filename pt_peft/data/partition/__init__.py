"""Partitions: which of a source's images each site has."""

from collections.abc import Sequence

from pt_peft.data.items import Item
from pt_peft.data.partition import even, skewed
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Partition

_KINDS = {"none": even.everything, "iid": even.equal_shares, "natural": even.site_column}
"""The kinds without skew; each gives a site its items directly."""


def partition(settings: Partition, items: Sequence[Item], *, name: str, names: Sequence[str], seed: int) -> list[Item]:
    """The items of the site `name`, in the order of `items`.

    A pure function of its arguments; the orders of `names` and `items` do not change which items are chosen. So every
    site computes its own share without a message. Random numbers come from SHA-256 or from numpy's legacy generator,
    whose streams are frozen, so that machines agree.

    Args:
        settings: the section ``partition`` of the experiment.
        items: all images of the source, each group in one split.
        name: the site's name.
        names: all sites of the run.
        seed: the experiment's seed.

    Raises:
        UserError: if the site is not in the partition, or the partition cannot be made of these items.
    """
    sites = sorted(set(names))
    if settings.kind not in ("none", "natural") and name not in sites:
        raise UserError(
            f"partition.kind '{settings.kind}': site {name!r} is not among the run's sites ({', '.join(sites)})."
        )
    if not items:  # the caller refuses them
        return []
    groups = len({item.group for item in items if item.split == "train"})
    if settings.kind == "iid" and settings.min_images and groups < len(sites):
        raise UserError(
            f"partition.kind 'iid': {groups} training groups cannot be dealt to {len(sites)} sites, each of which "
            "needs one."
        )
    if settings.kind in _KINDS:
        mine = _KINDS[settings.kind](items, name, sites, seed)
    else:
        mine = skewed.deal(settings, items, sites, seed)[name]
    trained = sum(item.split == "train" for item in mine)
    if 0 < trained < settings.min_images:  # the caller refuses a site without any
        raise UserError(
            f"partition.min_images is {settings.min_images}, but partition.kind '{settings.kind}' gives site {name!r} "
            f"{trained} training image(s)."
        )
    return mine
