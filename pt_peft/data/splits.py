"""Train, validation and test images where the source does not say which are which."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pt_peft.data.items import Item
from pt_peft.seeds import derive_seed

VAL_SHARE = 0.1
TEST_SHARE = 0.2


def assign_splits(items: Sequence[Item], seed: int) -> list[Item]:
    """Completes the splits, keeping every group in one of them; a pure function of `seed` and the set of items.

    Without any split, 70 / 10 / 20 % of the groups become train / val / test. With training images but no validation
    images, 10 % of the training groups become val. Otherwise the items are returned as they are.
    """
    splits = {item.split for item in items}
    if splits == {None}:
        groups = shuffled((item.group for item in items), seed, "split")
        val, test = round(VAL_SHARE * len(groups)), round(TEST_SHARE * len(groups))
        of_group = dict.fromkeys(groups, "train") | dict.fromkeys(groups[:val], "val")
        of_group |= dict.fromkeys(groups[val : val + test], "test")
        return [replace(item, split=of_group[item.group]) for item in items]
    if "train" in splits and "val" not in splits:
        groups = shuffled((item.group for item in items if item.split == "train"), seed, "split")
        held_out = set(groups[: round(VAL_SHARE * len(groups))])
        return [replace(item, split="val") if item.group in held_out else item for item in items]
    return list(items)


def shuffled(names: Iterable[str], seed: int, *purpose: str) -> list[str]:
    """The distinct `names` in a random order that depends on `seed`, `purpose` and the set of names alone.

    Sorting by a hash, unlike a generator's permutation, does not depend on the order in which names come nor on
    numpy's version.
    """
    return sorted(set(names), key=lambda name: (derive_seed(seed, *purpose, name), name))
