"""Train, validation and test images where the source does not say which are which."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pt_peft.data.items import Item, SplitName, strata
from pt_peft.seeds import derive_seed

_OF_TEN: dict[int, SplitName] = {2: "test", 5: "val", 7: "test"}
"""Of ten groups in a row, those that are not for training."""


def assign_splits(items: Sequence[Item], seed: int) -> list[Item]:
    """Completes the splits, keeping every group in one of them; a pure function of `seed` and the set of items.

    Without any split, 70 / 10 / 20 % of the groups become train / val / test. With training images but no validation
    images, 10 % of the training groups become val. Either is stratified by class and site. Otherwise the items are
    returned as they are.
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
    """`items` with no more of a split than `most` says, drawn at random; a pure function of `seed`, `site` and the items."""
    kept = {
        file
        for split, count in most.items()
        for file in shuffled((item.file for item in items if item.split == split), seed, "at most", site, split)[:count]
    }
    return [item for item in items if item.split not in most or item.file in kept]


def _draw(items: Sequence[Item], seed: int) -> dict[str, SplitName]:
    """Every group's split: groups stand in line, those of a site and class side by side in random order, and of each ten
    in a row one is for validation and two are for testing.
    """
    stratum = group_strata(items)
    site: dict[str, str] = {}
    for item in items:  # the first in order, of a group from several
        site[item.group] = min(site.get(item.group, item.site or ""), item.site or "")
    line = sorted(shuffled(stratum, seed, "split"), key=lambda group: (site[group], stratum[group]))
    return {group: _OF_TEN.get(place % 10, "train") for place, group in enumerate(line)}


def group_strata(items: Sequence[Item]) -> dict[str, int]:
    """The most frequent stratum (see `strata`) of each group's images; the lowest of several."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for item, stratum in zip(items, strata([item.labels for item in items]), strict=True):
        counts[item.group][stratum] += 1
    return {group: min(of, key=lambda stratum: (-of[stratum], stratum)) for group, of in counts.items()}


def shuffled(names: Iterable[str], seed: int, *purpose: str) -> list[str]:
    """The distinct `names` in a random order that depends on `seed`, `purpose` and the set of names alone.

    Sorting by a hash, unlike a generator's permutation, does not depend on the order in which names come nor on
    numpy's version.
    """
    return sorted(set(names), key=lambda name: (derive_seed(seed, *purpose, name), name))
