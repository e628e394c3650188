"""Draws training, validation and test images where the source does not assign them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pt_peft.data.items import Item, SplitName, strata
from pt_peft.data.names import clean
from pt_peft.seeds import derive_seed

_OF_TEN: dict[int, SplitName] = {2: "test", 5: "val", 7: "test"}
"""The splits of ten groups in a row, by position; the others are for training."""
_NAMES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(value: str) -> SplitName | None:
    """The split that a cell or a folder names, in upper or lower case; None if it names none."""
    return _NAMES.get(clean(value).casefold())


def assign_splits(items: Sequence[Item], seed: int) -> list[Item]:
    """Completes the splits; every group stays in one of them. A pure function of `seed` and the set of items.

    Without any split, 70 / 10 / 20 % of the groups become train / val / test. With training images but no validation
    images, 10 % of the training groups become val. Both draws are stratified by class and site. Other items are
    returned unchanged.
    """
    splits = {item.split for item in items}
    if splits == {None}:
        drawn = _draw(items, seed)
        return [replace(item, split=drawn[item.group]) for item in items]
    if "train" in splits and "val" not in splits:
        drawn = _draw([item for item in items if item.split == "train"], seed)
        return [replace(item, split="val") if drawn.get(item.group) == "val" else item for item in items]
    return list(items)


def at_most(most: Mapping[SplitName, int], items: Sequence[Item], seed: int, site: str) -> list[Item]:
    """Limits the images of each split, drawn at random. A pure function of `seed`, `site` and the set of items.

    Args:
        most: the most images of a split; splits that are not in it are not limited.
        items: the images of the site.
        seed: the experiment's seed.
        site: the site's name.
    """
    kept = {
        file
        for split, count in most.items()
        for file in shuffled((item.file for item in items if item.split == split), seed, "at most", site, split)[:count]
    }
    return [item for item in items if item.split not in most or item.file in kept]


def _draw(items: Sequence[Item], seed: int) -> dict[str, SplitName]:
    """The split of every group.

    Groups are sorted by site and class and shuffled within them; of every ten in a row, one is for validation and two
    are for testing.
    """
    stratum = group_strata(items)
    site: dict[str, str] = {}
    for item in items:  # a group from several sites counts for the first
        site[item.group] = min(site.get(item.group, item.site or ""), item.site or "")
    line = sorted(shuffled(stratum, seed, "split"), key=lambda group: (site[group], stratum[group]))
    return {group: _OF_TEN.get(place % 10, "train") for place, group in enumerate(line)}


def group_strata(items: Sequence[Item]) -> dict[str, int]:
    """The most frequent stratum (see `strata`) of each group's images; the lowest of equally frequent ones."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for item, stratum in zip(items, strata([item.labels for item in items]), strict=True):
        counts[item.group][stratum] += 1
    return {group: min(of, key=lambda stratum: (-of[stratum], stratum)) for group, of in counts.items()}


def shuffled(names: Iterable[str], seed: int, *purpose: str) -> list[str]:
    """The distinct `names` in a random order that depends only on `seed`, `purpose` and the set of names.

    Sorting by a hash, unlike a generator's permutation, depends neither on the order of the names nor on numpy's
    version.
    """
    return sorted(set(names), key=lambda name: (derive_seed(seed, *purpose, name), name))
