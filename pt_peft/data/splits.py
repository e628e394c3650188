"""Draws training, validation and test images where the source does not assign them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pt_peft import reasons
from pt_peft.data.items import Item, SplitName, strata
from pt_peft.data.names import clean
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Fold
from pt_peft.seeds import derive_seed

_OF_TEN: dict[int, SplitName] = {2: "test", 5: "val", 7: "test"}
"""The splits of ten groups in a row, by position; the others are for training."""
_VAL_OF = 8
"""With folds, one of so many groups that are not tested is for validation: with five folds, a tenth of all."""
_NAMES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(value: str) -> SplitName | None:
    """The split that a cell or a folder names, in upper or lower case; None if it names none."""
    return _NAMES.get(clean(value).casefold())


def assign_splits(items: Sequence[Item], seed: int, fold: Fold | None = None) -> list[Item]:
    """Completes the splits; every group stays in one of them. A pure function of its arguments and the set of items.

    Without any split, 70 / 10 / 20 % of the groups become train / val / test. With training images but no validation
    images, 10 % of the training groups become val. Both draws are stratified by class and site. Other items are
    returned unchanged.

    Args:
        items: the images.
        seed: draws the splits.
        fold: takes the splits of a fold instead, which do not depend on `seed`.

    Raises:
        UserError: if there is a `fold`, and images have splits.
    """
    splits = {item.split for item in items}
    if fold and items and splits != {None}:
        named = ", ".join(sorted(split for split in splits if split))
        raise UserError(
            f"experiment: field 'data.fold' must be null with images whose source assigns splits ({named})."
        ).told_as(reasons.ExperimentInvalid(field="data.fold"))
    if splits == {None}:
        drawn = _folded(items, fold) if fold else _draw(items, seed)
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
    """The split of every group: of every ten in a row, one is for validation and two are for testing."""
    line = _in_line(items, seed, "split")
    return {group: _OF_TEN.get(place % 10, "train") for place, group in enumerate(line)}


def _folded(items: Sequence[Item], fold: Fold) -> dict[str, SplitName]:
    """The split of every group in a fold: of every `fold.of` in a row one is for testing, the same in no other fold.

    Of every `_VAL_OF` of the others one is for validation, another one from fold to fold.
    """
    line = _in_line(items, 0, "fold")
    rest = [group for place, group in enumerate(line) if place % fold.of != fold.number - 1]
    validated = set(rest[fold.number % _VAL_OF :: _VAL_OF])
    drawn: dict[str, SplitName] = {group: "val" if group in validated else "train" for group in rest}
    return {group: drawn.get(group, "test") for group in line}


def _in_line(items: Sequence[Item], seed: int, purpose: str) -> list[str]:
    """All groups, sorted by site and class and shuffled within them, so that every n-th is a stratified sample."""
    stratum = group_strata(items)
    site: dict[str, str] = {}
    for item in items:  # a group from several sites counts for the first
        site[item.group] = min(site.get(item.group, item.site or ""), item.site or "")
    return sorted(shuffled(stratum, seed, purpose), key=lambda group: (site[group], stratum[group]))


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
