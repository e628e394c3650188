"""Deals groups of images to sites so that every site comes as close to its share of every class as groups allow."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from pt_peft.data.items import SPLITS, Item
from pt_peft.data.partition.proportions import PROPORTIONS
from pt_peft.data.splits import group_strata, shuffled
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Partition

Groups = dict[str, list[Item]]


def deal(settings: Partition, items: Sequence[Item], sites: list[str], seed: int) -> dict[str, list[Item]]:
    """The items of every site, in the order of `items`.

    The shares of ``partition.kind``, of which the part ``iid_share`` is replaced by equal shares, hold in training,
    validation and test images alike. All images of a group count for its most frequent class, see `group_strata`.

    Args:
        settings: the section ``partition`` of the experiment, of a kind in `PROPORTIONS`.
        items: all images of the source, each group in one split.
        sites: the names of all sites, sorted.
        seed: the experiment's seed.

    Raises:
        UserError: if there are too few training images for ``min_images`` at every site.
    """
    stratum = group_strata(items)
    counts = np.bincount([stratum[item.group] for item in items]).astype(np.float64)
    shares = PROPORTIONS[settings.kind](settings, counts, sites, seed)
    shares = settings.iid_share / len(sites) + (1 - settings.iid_share) * shares
    groups: Groups = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    site_of: dict[str, str] = {}
    for split in SPLITS:
        of_label: dict[int, list[str]] = defaultdict(list)
        for group in shuffled((item.group for item in items if item.split == split), seed, "partition", split):
            of_label[stratum[group]].append(group)
        for label, members in of_label.items():
            total = sum(len(groups[group]) for group in members)
            lacking = {site: total * shares[label, index] for index, site in enumerate(sites)}
            # Ties are broken in another order for each class, so that no site collects all that rounding leaves.
            order = shuffled(sites, seed, "partition", split, str(label))
            for group in sorted(members, key=lambda group: len(groups[group]), reverse=True):
                site = max(order, key=lacking.__getitem__)
                lacking[site] -= len(groups[group])
                site_of[group] = site
    _level_up(site_of, groups, stratum, sites, settings)
    dealt: dict[str, list[Item]] = {site: [] for site in sites}
    for item in items:
        dealt[site_of[item.group]].append(item)
    return dealt


def _level_up(
    site_of: dict[str, str], groups: Groups, stratum: dict[str, int], sites: list[str], settings: Partition
) -> None:
    """Moves as few training groups as needed from the largest sites to those below ``min_images``. Raises UserError."""
    of_site: dict[str, list[str]] = {site: [] for site in sites}
    for group, site in site_of.items():
        if groups[group][0].split == "train":
            of_site[site].append(group)
    held = {site: sum(len(groups[group]) for group in of_site[site]) for site in sites}
    for site in sites:
        while held[site] < settings.min_images:
            donor, fitting = _donor(site, of_site, held, groups, settings.min_images)
            if not fitting:
                raise UserError(
                    f"partition.min_images is {settings.min_images}, but {sum(held.values())} training images in "
                    f"{sum(map(len, of_site.values()))} groups cannot give {len(sites)} sites so many each."
                )
            # A group of the donor's most frequent class changes the donor's mix least.
            frequent = Counter(stratum[group] for group in fitting).most_common(1)[0][0]
            group = min((one for one in fitting if stratum[one] == frequent), key=lambda one: (len(groups[one]), one))
            of_site[donor].remove(group)
            of_site[site].append(group)
            held[donor] -= len(groups[group])
            held[site] += len(groups[group])
            site_of[group] = site


def _donor(
    taker: str, of_site: dict[str, list[str]], held: dict[str, int], groups: Groups, least: int
) -> tuple[str, list[str]]:
    """The largest site that can give a group and keep `least` images, and the groups that it can give, if any."""
    for donor in sorted(held, key=held.__getitem__, reverse=True):
        fitting = [group for group in of_site[donor] if len(groups[group]) <= held[donor] - least]
        if donor != taker and fitting:
            return donor, fitting
    return taker, []
