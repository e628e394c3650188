"""Every site works out its own share; together the shares are the whole, whatever the order of names and items."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pt_peft.data.items import SPLITS, Item
from pt_peft.data.partition import PARTITIONS, partition
from pt_peft.data.splits import assign_splits
from pt_peft.errors import UserError
from pt_peft.experiment import Partition

ROOT = Path(__file__).parents[2]

groups = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(SPLITS)), min_size=1, max_size=25)
sites = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True)
seeds = st.integers(0, 2**31 - 1)


def items_of(groups: list[tuple[int, str | None]]) -> list[Item]:
    """Items in groups of the given sizes and splits."""
    return [
        Item(f"{g}/{i}.png", label=0, split=split, group=f"group {g}")
        for g, (size, split) in enumerate(groups)
        for i in range(size)
    ]


def shares(items: list[Item], names: list[str], seed: int) -> dict[str, list[Item]]:
    return {name: partition("iid", items, name=name, names=names, seed=seed) for name in names}


def test_every_kind_of_the_schema_has_a_function():
    assert set(PARTITIONS) == set(Partition.model_fields["kind"].annotation.__args__)


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
items = [Item(*fields) for fields in json.load(sys.stdin)]
print(json.dumps([item.file for item in partition("iid", items, name="b", names=["c", "a", "b"], seed=7)]))
"""
    fields = json.dumps([[item.file, item.label, item.split, item.group] for item in items])
    run = subprocess.run([sys.executable, "-c", code], input=fields, capture_output=True, text=True, cwd=ROOT, check=True)
    here = partition("iid", items, name="b", names=["a", "b", "c"], seed=7)
    assert json.loads(run.stdout) == [item.file for item in here]


def test_iid_refuses_a_site_that_is_not_in_the_run():
    with pytest.raises(UserError, match=r"site 'x' is not among the run's sites \(a, b\)"):
        partition("iid", items_of([(1, "train")]), name="x", names=["b", "a"], seed=0)


def test_natural_takes_the_sites_own_images_and_lists_sites_when_there_are_none():
    items = [Item(f"{i}", 0, "train", f"{i}", site) for i, site in enumerate(["vienna", "queensland", "vienna"])]
    assert partition("natural", items, name="vienna", names=[], seed=0) == [items[0], items[2]]
    with pytest.raises(UserError, match="no image comes from site 'site-1'; the table's sites are queensland, vienna"):
        partition("natural", items, name="site-1", names=[], seed=0)


def test_none_gives_everything():
    items = items_of([(2, "train"), (1, "val")])
    assert partition("none", items, name="a", names=["a", "b"], seed=0) == items


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), seeds, st.randoms())
def test_drawn_splits_keep_groups_together_whatever_the_order(sizes, seed, random):
    items = items_of([(size, None) for size in sizes])
    drawn = assign_splits(items, seed)
    split_of = {item.group: item.split for item in drawn}
    assert all(split_of[item.group] == item.split for item in drawn)
    counts = Counter(split_of.values())
    assert counts["val"] == round(0.1 * len(sizes)) and counts["test"] == round(0.2 * len(sizes)) and counts["train"]
    random.shuffle(items)
    assert set(assign_splits(items, seed)) == set(drawn)


def test_val_is_carved_from_training_groups_only_where_there_is_none():
    items = items_of([(2, "train")] * 20 + [(1, "test")] * 5)
    carved = assign_splits(items, seed=0)
    assert Counter(item.split for item in carved) == {"train": 36, "val": 4, "test": 5}
    assert len({item.group for item in carved if item.split == "val"}) == 2
    assert assign_splits(carved, seed=1) == carved
