"""A long job under random faults: what is planned, what counts as lost, and a short one."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import cast

import pytest

from benchmark.__main__ import main
from benchmark.federation.lab import SERVER
from benchmark.federation.soak import KINDS, Done, Planned, Soak, experiment, lost, plan

NAMES = ["a", "b", "c"]


def test_the_same_seed_plans_the_same_faults():
    assert plan(NAMES, 100, 1) == plan(NAMES, 100, 1)
    assert plan(NAMES, 100, 1) != plan(NAMES, 100, 2)


def test_every_kind_and_every_site_comes_equally_often():
    planned = plan(NAMES, 500, 0)
    kinds = Counter(one.kind for one in planned)
    assert kinds.keys() == KINDS.keys()
    assert max(kinds.values()) - min(kinds.values()) <= 1
    sites = Counter(one.site for one in planned if one.site != SERVER)
    assert sites.keys() == set(NAMES)
    assert all(5 <= one.seconds <= 20 for one in planned)
    assert [one.round for one in planned] == sorted(one.round for one in planned)


def test_an_absence_has_a_fault_or_a_reason_or_is_unexplained():
    soak = SimpleNamespace(
        record={
            "rounds": [
                {"round": 0, "sites": dict.fromkeys("abc"), "left_out": {}},
                {"round": 1, "sites": dict.fromkeys("bc"), "left_out": {}},
                {"round": 2, "sites": dict.fromkeys("ac"), "left_out": {"b": "it says why"}},
                {"round": 3, "sites": dict.fromkeys("ab"), "left_out": {}},
            ]
        },
        ended_at={0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0},
        done=[Done(Planned(1, "cut", "a", 5.0), begin_s=12.0, end_s=17.0, back_s=30.0)],
    )
    found = lost(cast(Soak, soak), NAMES)
    assert found["by_fault"] == {"cut": 1, "no fault": 2}
    assert found["unexplained"] == 1
    assert found["which"] == [[3, "c"]]


def test_its_experiment_is_small_and_asks_for_half_of_the_sites():
    asked = experiment(10, 500)
    assert asked.federation.rounds == 500
    assert asked.federation.min_sites == 5
    assert asked.backbone.image_size == 32


@pytest.mark.slow
def test_a_short_one_loses_nothing(own_network_command, tmp_path):
    out = tmp_path / "soak.json"
    asked = ["--sites", "3", "--rounds", "30", "--minutes", "15"]
    assert main(["soak", *asked, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["status"] == "finished"
    assert found["in_order"]
    assert found["finished_rounds"] == 30
    assert found["faults"]
    assert found["lost"]["unexplained"] == 0
    assert found["difference"] <= 1e-6
