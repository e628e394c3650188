"""FedProx: the gradient of mu/2 |w - w_start|² on what is exchanged."""

import numpy as np
import pytest
import torch

from benchmark.oracle.reference import load_sites, make_trainer
from helpers import changed
from pt_peft.experiment.site import Site
from pt_peft.federation.local_round import local_round
from pt_peft.training.adjustments import Pull


@pytest.fixture(scope="module")
def distance(tiny, tiny_weights):
    """How far a round moves the exchanged tensors, and the head that stays at the site, by mu."""
    site = Site(backbone=str(tiny_weights))

    def measure(mu, head="exchanged"):
        experiment = changed(
            tiny, training={"proximal": mu, "local_epochs": 4}, method={**tiny.method.model_dump(), "head": head}
        )
        trainer = make_trainer(experiment, site)
        data = load_sites(experiment, site, ["site-1"])["site-1"].train
        trained = local_round(trainer, "site-1", data, trainer.initial, {}, 0).state
        moved = {key: float(np.square(trained[key] - trainer.initial[key]).sum()) for key in trained}
        exchanged = trainer.exchange.trained(0)
        return sum(moved[key] for key in exchanged) ** 0.5, sum(
            moved[key] for key in moved.keys() - exchanged.keys()
        ) ** 0.5

    return measure


def test_it_pulls_back(distance):
    free, pulled = distance(0.0)[0], distance(100.0)[0]
    assert pulled < 0.8 * free


def test_what_stays_at_the_site_is_free(distance):
    (_, free), (_, pulled) = distance(0.0, "local"), distance(100.0, "local")
    assert pulled > 0.9 * free


def test_the_gradient():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    pull = Pull(2.0, {"x": parameter, "y": torch.nn.Parameter(torch.zeros(1))}, keys={"x"})
    with torch.no_grad():
        parameter += torch.tensor([0.5, -1.0])
    parameter.grad = torch.tensor([0.1, 0.1])
    pull()
    torch.testing.assert_close(parameter.grad, torch.tensor([0.1 + 2 * 0.5, 0.1 - 2 * 1.0]))
