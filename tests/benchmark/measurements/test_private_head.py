"""DP-SGD on cached features takes the steps of the product's trainer, and each kind has the epsilon asked for."""

import numpy as np
import pytest

from benchmark.measurements import private_head
from benchmark.measurements.private_head import DELTA, Probe, ProbeTrainer, least_noise, spread
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from helpers import changed
from pt_peft.privacy.accounting import epsilon
from pt_peft.privacy.plan import plan

NAMES = ["site-1", "site-2"]


@pytest.fixture(scope="module")
def probe(tiny, site):
    return Probe(tiny, site, NAMES, {"federation.rounds": (1, 2), "training.head_learning_rate": (0.01,)})


def test_its_steps_are_those_of_the_products_trainer(tiny, site):
    experiment = changed(
        tiny,
        method={"name": "linear_probe", "options": {}},
        data={"augment": []},
        privacy={
            "sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5},
            "randomness": "insecure_from_public_seed",
        },
    )
    data = load_sites(experiment, site, NAMES)
    trainer = make_trainer(experiment, site)
    known = {id(one.train): trainer.features({}, one.train, "none") for one in data.values()}
    ours = federate(ProbeTrainer(experiment, site, known), data).tensors
    theirs = federate(trainer, data).tensors
    assert greatest_difference(ours, theirs) < 1e-5


def test_the_site_that_spends_most_spends_the_target(probe):
    settings = {"training.batch_size": 8, "federation.rounds": 3, "training.learning_rate": 0.01}
    noise = probe.multiplier(settings, 4.0)
    steps = plan(probe._with(settings, noise), 40, 3, 0).steps
    assert epsilon(steps, DELTA) == pytest.approx(4.0, rel=1e-3)
    assert epsilon(steps, DELTA) <= 4.0
    assert least_noise(lambda value: 1 / value, 0.5) == pytest.approx(2, rel=1e-3)


def test_a_row_has_all_kinds(probe, monkeypatch):
    monkeypatch.setattr(private_head, "PROJECTION", 4)
    for target in (4.0, None):
        row = probe.row(target, 2)
        assert (row["noise_multiplier"] is None) == (target is None)
        for kind in ("all_features", "projected", "dp_sgd"):
            assert 0 <= row[kind]["balanced_accuracy"]["mean"] <= 1
        assert row["dp_sgd_settings"]["federation.rounds"] in (1, 2)
        assert row["at_edge"] == ["federation.rounds", "training.head_learning_rate"]
    assert row["all_features"]["auroc"]["std"] == 0


def test_a_choice_inside_the_grid_is_not_at_its_edge(probe, monkeypatch):
    monkeypatch.setattr(probe, "grid", {"federation.rounds": (1, 2, 3)})
    monkeypatch.setattr(probe, "best", lambda target: ({"federation.rounds": 2}, None))
    assert probe.row(None, 1)["at_edge"] == []


def test_the_spread_of_draws():
    scores = [{"balanced_accuracy": value, "accuracy": 1.0, "auroc": 0.5} for value in (0.2, 0.4, 0.6)]
    assert spread(scores)["balanced_accuracy"]["mean"] == pytest.approx(0.4)
    assert spread(scores)["balanced_accuracy"]["std"] == pytest.approx(np.std([0.2, 0.4, 0.6], ddof=1))
