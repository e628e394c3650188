"""One malicious site of five, in real training."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from benchmark.measurements.attackers import ATTACKS, MALICIOUS_SITE, SITES, attacking, measure, table
from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import changed
from pt_peft.exchange.aggregation import Aggregation

ROBUST = [
    {"name": "norm_bounded_mean"},
    {"name": "trimmed_mean", "f": 1},
    {"name": "median"},
    {"name": "multi_krum", "f": 1},
]


@pytest.fixture(scope="module")
def trained(tiny, site):
    """The final tensors by rule and attack; without the malicious site for None."""
    experiment = changed(tiny, federation={"min_sites": 5, "sites": list(SITES)})
    sites = load_sites(experiment, site, list(SITES))

    def train(rule, attack):
        aggregation = TypeAdapter(Aggregation).validate_python(rule)
        trainer = make_trainer(experiment.model_copy(update={"aggregation": aggregation}), site)
        if attack is None:
            return federate(trainer, {name: data for name, data in sites.items() if name != MALICIOUS_SITE}).tensors
        return federate(trainer, sites, tamper=attacking(ATTACKS[attack])).tensors

    return train


@pytest.fixture(scope="module")
def honest(trained):
    return trained({"name": "mean", "weighting": "uniform"}, None)


def distance(one, other):
    return np.sqrt(sum(np.square(one[key].astype(float) - other[key]).sum() for key in one))


@pytest.mark.parametrize("attack", ["sign_flip", "scaled", "noise"])
def test_robust_rules_end_nearer_the_honest_mean(attack, trained, honest):
    moved = distance(trained({"name": "mean"}, attack), honest)
    for rule in ROBUST:
        assert distance(trained(rule, attack), honest) < 0.7 * moved, rule


def test_an_honest_site_is_not_tampered_with():
    sent = {"x": np.ones(3, np.float32)}
    tamper = attacking(ATTACKS["scaled"])
    assert tamper("site-2", {"x": np.zeros(3, np.float32)}, sent) is sent
    np.testing.assert_array_equal(
        tamper(MALICIOUS_SITE, {"x": np.full(3, 0.5, np.float32)}, sent)["x"], np.full(3, 15.5, np.float32)
    )


def test_the_table(tiny, site):
    experiment = changed(tiny, federation={"min_sites": 5, "sites": list(SITES)})
    rows = measure(experiment, site, rules=({"name": "median"},))
    assert [row["attack"] for row in rows] == list(ATTACKS)
    assert "| `median` |" in table(rows)
