"""Every site computes its own share; together the shares are the whole, in any order of names and items."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT
from pt_peft.data.feature_shift import SiteShift
from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.partition import partition
from pt_peft.data.partition.proportions import dirichlet, dirichlet_by_site
from pt_peft.data.splits import assign_splits, shuffled
from pt_peft.errors import UserError
from pt_peft.experiment.sections import FeatureShift, Fold, Partition

groups = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(SPLITS)), min_size=1, max_size=25)
sites = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True)
seeds = st.integers(0, 2**31 - 1)


def items_of(groups: Sequence[tuple[int, str | None]]) -> list[Item]:
    """Items in groups of the given sizes and splits."""
    return [
        Item(f"{g}/{i}.png", labels=(0,), split=cast(SplitName | None, split), group=f"group {g}")
        for g, (size, split) in enumerate(groups)
        for i in range(size)
    ]


def shares(items: list[Item], names: list[str], seed: int) -> dict[str, list[Item]]:
    return {
        name: partition(Partition(kind="iid", min_images=0), items, name=name, names=names, seed=seed) for name in names
    }


@given(groups, sites, seeds)
def test_iid_shares_are_disjoint_complete_and_keep_groups_together(groups, names, seed):
    items = items_of(groups)
    found = shares(items, names, seed)
    assert Counter(item for share in found.values() for item in share) == Counter(items)
    sites_of = {}
    for name, share in found.items():
        for item in share:
            sites_of.setdefault(item.group, set()).add(name)
    assert all(len(names) == 1 for names in sites_of.values())


@given(groups, sites, seeds)
def test_iid_shares_differ_by_at_most_the_largest_group(groups, names, seed):
    items = items_of(groups)
    found = shares(items, names, seed)
    for split in SPLITS:
        sizes = [sum(item.split == split for item in share) for share in found.values()]
        assert max(sizes) - min(sizes) <= max((size for size, of in groups if of == split), default=0)


@given(groups, sites, seeds, st.randoms())
def test_iid_does_not_depend_on_the_order_of_names_or_items(groups, names, seed, random):
    items = items_of(groups)
    before = {name: set(share) for name, share in shares(items, names, seed).items()}
    random.shuffle(items)
    random.shuffle(names)
    assert {name: set(share) for name, share in shares(items, names, seed).items()} == before


def test_iid_depends_on_the_seed():
    items = items_of([(1, "train")] * 40)
    assert shares(items, ["a", "b"], 0) != shares(items, ["a", "b"], 1)


def test_iid_is_the_same_in_another_process():
    items = items_of([(1, "train")] * 9 + [(3, "test")] * 4)
    code = """
import json, sys
from pt_peft.data.items import Item
from pt_peft.data.partition import partition
from pt_peft.experiment.sections import Partition
items = [Item(*fields) for fields in json.load(sys.stdin)]
mine = partition(Partition(kind="iid"), items, name="b", names=["c", "a", "b"], seed=7)
print(json.dumps([item.file for item in mine]))
"""
    fields = json.dumps([[item.file, item.labels[0], item.split, item.group] for item in items])
    run = subprocess.run(
        [sys.executable, "-c", code], input=fields, capture_output=True, text=True, cwd=ROOT, check=True
    )
    here = partition(Partition(kind="iid"), items, name="b", names=["a", "b", "c"], seed=7)
    assert json.loads(run.stdout) == [item.file for item in here]


def test_iid_refuses_a_site_that_is_not_in_the_run():
    with pytest.raises(UserError, match=r"site 'x' is not among the run's sites \(a, b\)"):
        partition(Partition(kind="iid"), items_of([(1, "train")]), name="x", names=["b", "a"], seed=0)


def test_natural_takes_the_sites_own_images_and_lists_sites_when_there_are_none():
    items = [Item(f"{i}", (0,), "train", f"{i}", site) for i, site in enumerate(["vienna", "queensland", "vienna"])]
    assert partition(Partition(kind="natural"), items, name="vienna", names=[], seed=0) == [items[0], items[2]]
    with pytest.raises(UserError, match="no image comes from site 'site-1'; the table's sites are queensland, vienna"):
        partition(Partition(kind="natural"), items, name="site-1", names=[], seed=0)


def test_none_gives_everything():
    items = items_of([(2, "train"), (1, "val")])
    assert partition(Partition(kind="none"), items, name="a", names=["a", "b"], seed=0) == items


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), seeds, st.randoms())
def test_drawn_splits_keep_groups_together_in_any_order(sizes, seed, random):
    items = items_of([(size, None) for size in sizes])
    drawn = assign_splits(items, seed)
    split_of = {item.group: item.split for item in drawn}
    assert all(split_of[item.group] == item.split for item in drawn)
    counts = Counter(split_of.values())
    assert abs(counts["val"] - 0.1 * len(sizes)) < 1
    assert abs(counts["test"] - 0.2 * len(sizes)) < 1
    assert counts["train"]
    random.shuffle(items)
    assert set(assign_splits(items, seed)) == set(drawn)


def test_val_is_carved_from_training_groups_only_where_there_is_none():
    items = items_of([(2, "train")] * 20 + [(1, "test")] * 5)
    carved = assign_splits(items, seed=0)
    assert Counter(item.split for item in carved) == {"train": 36, "val": 4, "test": 5}
    assert len({item.group for item in carved if item.split == "val"}) == 2
    assert assign_splits(carved, seed=1) == carved


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from("ab")), min_size=1, max_size=60),
       st.integers(2, 6), st.randoms())  # fmt: skip
def test_every_image_is_tested_in_one_fold_and_every_fold_is_stratified(drawn, of, random):
    items = [
        Item(f"{g}/{i}.png", labels=(label,), split=None, group=f"group {g}", site=site)
        for g, (size, label, site) in enumerate(drawn)
        for i in range(size)
    ]
    folds = [assign_splits(items, seed, Fold(number=1 + seed, of=of)) for seed in range(of)]
    assert Counter(item.file for fold in folds for item in fold if item.split == "test") == Counter(
        item.file for item in items
    )
    strata = Counter((label, site) for _, label, site in drawn)
    for number, fold in enumerate(folds):
        split_of = {item.group: item.split for item in fold}
        assert all(split_of[item.group] == item.split for item in fold), "a group is in two splits"
        rest = [split for split in split_of.values() if split != "test"]
        assert abs(rest.count("val") - len(rest) / 8) < 1
        tested = Counter(drawn[int(group[6:])][1:] for group, split in split_of.items() if split == "test")
        assert all(abs(tested[stratum] - count / of) < 1 for stratum, count in strata.items())
        random.shuffle(items)
        assert set(assign_splits(items, 99, Fold(number=1 + number, of=of))) == set(fold)


def test_folds_are_for_images_without_splits():
    with pytest.raises(UserError, match=r"'data.fold' must be null with images whose source assigns splits \(test, tr"):
        assign_splits(items_of([(1, "train"), (1, "test")]), 0, Fold(number=1, of=5))
    with pytest.raises(ValueError, match="at most 'of'"):
        Fold(number=6, of=5)


SKEWED = [
    Partition(kind="dirichlet", alpha=0.05, min_images=0),
    Partition(kind="dirichlet", alpha=1e-4, min_images=0),
    Partition(kind="dirichlet", alpha=100.0, min_images=0, iid_share=0.5),
    Partition(kind="dirichlet_by_site", alpha=0.1, min_images=0),
    Partition(kind="dirichlet_by_site", alpha=1e-4, min_images=0),
    Partition(kind="shards", classes_per_site=3, min_images=0),
    Partition(kind="quantity", exponent=2.0, min_images=0),
]


def labelled(groups: Sequence[tuple[int, str]], classes: int = 3) -> list[Item]:
    """Items in groups of the given sizes and splits, with classes in turn by group."""
    return [
        Item(f"{g}/{i}.png", labels=(g % classes,), split=cast(SplitName | None, split), group=f"group {g}")
        for g, (size, split) in enumerate(groups)
        for i in range(size)
    ]


def dealt(settings: Partition, items: list[Item], names: list[str], seed: int = 0) -> dict[str, list[Item]]:
    """Every site's own account of its share."""
    return {name: partition(settings, items, name=name, names=names, seed=seed) for name in names}


@pytest.mark.parametrize("settings", SKEWED, ids=lambda settings: f"{settings.kind} {settings.alpha:g}")
@given(groups=groups, names=sites, seed=seeds, random=st.randoms())
def test_skewed_shares_are_disjoint_complete_and_the_same_in_any_order(settings, groups, names, seed, random):
    items = labelled([*groups, *[(1, "train")] * 3])  # at least one group of each class
    found = dealt(settings, items, names, seed)
    assert Counter(item for share in found.values() for item in share) == Counter(items)
    owners = {(item.group, name) for name, share in found.items() for item in share}
    assert len(owners) == len({group for group, _ in owners}), "a group is at two sites"
    random.shuffle(items)
    random.shuffle(names)
    again = dealt(settings, items, names, seed)
    assert {name: set(share) for name, share in again.items()} == {name: set(share) for name, share in found.items()}


def counts(share: list[Item], split: str = "train") -> np.ndarray:
    return np.bincount([item.labels[0] for item in share if item.split == split], minlength=10)


def test_dirichlet_of_500_images_over_20_sites():
    items = labelled([(1, "train")] * 500 + [(1, "test")] * 200, classes=10)
    names = [f"site-{index}" for index in range(20)]
    found = dealt(Partition(kind="dirichlet", alpha=0.05, min_images=5), items, names)
    matrix = np.array([counts(share) for share in found.values()])
    assert matrix.sum() == 500
    assert (matrix.sum(axis=1) >= 5).all()
    # Label skew: the largest holder of a class has most of it, and test images follow the same shares.
    assert np.median(matrix.max(axis=0) / matrix.sum(axis=0)) > 0.5
    test = np.array([counts(share, "test") for share in found.values()])
    assert test.sum() == 200
    assert np.corrcoef(matrix.ravel(), test.ravel())[0, 1] > 0.8
    even = np.array(
        [counts(share) for share in dealt(Partition(kind="dirichlet", alpha=10_000.0), items, names).values()]
    )
    assert np.abs(even - 2.5).max() <= 1.5


def test_dirichlet_shares_have_the_distributions_moments():
    """Over many classes: mean 1/N and variance (N - 1) / (N² (N alpha + 1))."""
    for alpha in (0.05, 1.0, 20.0):
        shares = dirichlet(Partition(kind="dirichlet", alpha=alpha), np.ones(4000), ["a", "b", "c", "d"], 0)
        variance = 3 / (16 * (4 * alpha + 1))
        assert np.allclose(shares.mean(axis=0), 0.25, atol=4 * np.sqrt(variance / 4000))
        assert np.allclose(shares.var(axis=0), variance, rtol=0.15)


def test_dirichlet_by_site_has_sites_of_one_size_and_draws_mixes_with_the_distributions_moments():
    """While no class runs out: of 400 sites the first to choose, whose mixes have mean p and variance p (1-p)/(a+1)."""
    counts, names = np.array([5000.0, 3000.0, 2000.0, 0.0]), [f"site-{index}" for index in range(400)]
    prior, size = counts / counts.sum(), counts.sum() / 400
    for alpha in (0.1, 2.0, 1000.0):
        settings = Partition(kind="dirichlet_by_site", alpha=alpha)
        shares = dirichlet_by_site(settings, counts, names, 0)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        taken = shares[:3] * counts[:3, None]
        np.testing.assert_allclose(taken.sum(axis=0), size)
        order = shuffled(names, 0, "partition", "dirichlet_by_site")
        mixes = np.array([taken[:, names.index(name)] / size for name in order[:200]])
        variance = prior[:3] * (1 - prior[:3]) / (alpha + 1)
        assert np.allclose(mixes.mean(axis=0), prior[:3], atol=4 * np.sqrt(variance.max() / 200))
        assert np.allclose(mixes.var(axis=0), variance, rtol=0.35)
    assert np.median((taken / size).max(axis=0)) < 0.6, "nearly the mix of all"


def test_dirichlet_by_site_of_images():
    items = labelled([(1, "train")] * 600 + [(1, "test")] * 100, classes=10)
    names = [f"site-{index}" for index in range(6)]
    found = dealt(Partition(kind="dirichlet_by_site", alpha=0.5), items, names)
    matrix = np.array([counts(share) for share in found.values()])
    assert np.abs(matrix.sum(axis=1) - 100).max() <= 5, "whole images of each class"
    assert np.median(matrix.max(axis=1)) > 30
    test = np.array([counts(share, "test") for share in found.values()])
    assert np.corrcoef(matrix.ravel(), test.ravel())[0, 1] > 0.8


def test_shards_give_every_site_its_number_of_classes():
    items = labelled([(1, "train")] * 600, classes=10)
    names = [f"site-{index}" for index in range(6)]
    found = dealt(Partition(kind="shards", classes_per_site=2), items, names)
    assert all((counts(share) > 0).sum() == 2 for share in found.values())
    for wrong in (1, 11):
        with pytest.raises(UserError, match=f"partition.classes_per_site is {wrong}, but 6 .* a number from 2 to 10"):
            partition(Partition(kind="shards", classes_per_site=wrong), items, name="site-0", names=names, seed=0)


def test_quantity_follows_the_power_law_with_the_same_mix():
    items = labelled([(1, "train")] * 3000, classes=3)
    found = dealt(Partition(kind="quantity", exponent=1.0), items, list("abcd"))
    sizes = sorted((len(share) for share in found.values()), reverse=True)
    assert np.allclose(sizes, 3000 * np.array([12, 6, 4, 3]) / 25, atol=4)
    assert all(np.ptp(counts(share)[:3]) <= 2 for share in found.values())


def test_a_minimum_of_images_is_met_or_refused():
    items = labelled([(1, "train")] * 60, classes=3)
    names = list("abcdef")
    found = dealt(Partition(kind="dirichlet", alpha=1e-3, min_images=10), items, names)
    assert {len(share) for share in found.values()} == {10}
    with pytest.raises(
        UserError, match=r"partition.min_images is 11, but 60 training images in 60 groups cannot give 6 sites"
    ):
        partition(Partition(kind="dirichlet", min_images=11), items, name="a", names=names, seed=0)
    with pytest.raises(UserError, match=r"partition.min_images is 11, but partition.kind 'iid' gives site 'a' 10"):
        partition(Partition(kind="iid", min_images=11), items, name="a", names=names, seed=0)


def test_the_real_sites_of_ham10000_and_a_dirichlet_split_of_it(shared):
    from pt_peft.data.table import read_table
    from pt_peft.experiment.own_images import Columns, SiteData
    from pt_peft.experiment.sections import Data
    from pt_peft.experiment.site import Site

    classes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    columns = Columns(label="dx", group="lesion_id", site="site")
    folder = shared / "ham10000_200x150"
    own = SiteData(table=str(folder / "metadata.csv"), images=str(folder / "images.zip"), columns=columns)
    items = read_table(Site(data=own), Data(source="site", classes=classes))
    names = [f"site-{index}" for index in range(20)]
    found = dealt(Partition(kind="dirichlet", alpha=0.3, min_images=50), items, names)
    assert sum(len(share) for share in found.values()) == len(items) == 10_015
    assert min(sum(item.split == "train" for item in share) for share in found.values()) >= 50


def test_feature_shift_is_the_sites_own_and_goes_with_its_strength():
    image = np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8)
    unchanged = SiteShift(FeatureShift(), 0, "a")(image)
    assert np.array_equal(unchanged, image)
    for field in FeatureShift.model_fields:
        weak, strong = (
            [SiteShift(FeatureShift(**{field: strength}), 0, site)(image) for site in "abcd"] for strength in (0.2, 1.0)
        )
        assert len({one.tobytes() for one in strong}) == 4, field
        assert np.array_equal(strong[0], SiteShift(FeatureShift(**{field: 1.0}), 0, "a")(image))
        near, far = (np.mean([np.abs(one.astype(float) - image).mean() for one in some]) for some in (weak, strong))
        assert 0 < near < far, field


def test_a_large_group_does_not_keep_others_from_giving():
    """Three sites, one group of ten and eight single images: the site with the large group cannot give it away."""
    items = labelled([(10, "train"), *[(1, "train")] * 8], classes=1)
    for seed in range(30):
        for kind in ("dirichlet", "quantity"):
            found = {name: partition(Partition(kind=kind), items, name=name, names="abc", seed=seed) for name in "abc"}
            assert all(found.values())
            assert sum(map(len, found.values())) == 18


def test_drawn_splits_do_not_depend_on_the_order_of_rows_where_groups_span_sites():
    items = [Item(f"{i}", (i % 2,), None, f"group {i // 2}", site="ab"[i % 2]) for i in range(60)]
    assert set(assign_splits(items, 0)) == set(assign_splits(items[::-1], 0))


def test_more_sites_than_images_are_refused_at_every_site():
    for name in "abcde":
        with pytest.raises(UserError, match="3 training groups cannot be dealt to 5 sites"):
            partition(Partition(kind="iid"), labelled([(1, "train")] * 3), name=name, names="abcde", seed=0)
