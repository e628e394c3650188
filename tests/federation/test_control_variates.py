"""SCAFFOLD on quadratics whose minimum is known, and against its definition: c is the weighted mean of all c_k."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.oracle.reference import load_sites, make_trainer
from helpers import changed
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, TensorSpec
from pt_peft.federation import transfer
from pt_peft.federation.local_round import local_round
from pt_peft.federation.server import FederationServer
from pt_peft.model.planned_exchange import CONTROL, initial_exchanged
from pt_peft.training.adjustments import Correction

X, C = "x", CONTROL + "x"
RATE, STEPS = 0.1, 5
TARGETS = {"a": [1.0, 0.0, 2.0], "b": [-1.0, 3.0, 0.5], "c": [0.0, -2.0, 1.0], "d": [4.0, 1.0, -1.0]}
CURVATURE = {"a": [1.0, 0.5, 2.0], "b": [0.3, 1.0, 1.0], "c": [2.0, 2.0, 0.1], "d": [1.0, 1.0, 1.0]}
IMAGES = {"a": 900, "b": 100, "c": 40, "d": 7}
AWAY = {0: "d", 1: "bd", 2: "a", 3: "c", 5: "abc", 6: "d"}
"""Sites without a result, by round; d comes for the first time in round 2."""


def server(experiment, weighting, size):
    specs = {X: TensorSpec((size,), "float32"), C: TensorSpec((size,), "float32")}
    exchange = Exchange(specs, always=frozenset(specs), control=frozenset([C]))
    start = {key: np.zeros(size, np.float32) for key in specs}
    rule = Mean(weighting=weighting)
    return FederationServer(experiment.model_copy(update={"aggregation": rule}), exchange, start)


def train(start, control, own, target, curvature):
    """A site's steps by gradient descent on curvature/2 (x - target)², with the product's correction of gradients."""
    parameter = nn.Parameter(torch.tensor(start))
    correction = Correction({X: control - own})
    adjust = correction.attach({X: parameter})
    optimizer = torch.optim.SGD([parameter], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (torch.tensor(curvature) / 2 * (parameter - torch.tensor(target)) ** 2).sum().backward()
        adjust()
        optimizer.step()
    return parameter.detach().numpy(), correction.mean_gradients()[X]


def run_rounds(found, rounds, sites, kept, first=0):
    """Runs the product's server; `kept` holds each site's c_k. Returns x after each round."""
    path = []
    for number in range(first, first + rounds):
        opened = found.start_round(number)
        for site in sorted(set(sites) - set(AWAY.get(number, "") if len(sites) > 2 else "")):
            down = found.payload(site, 0, number)
            own = kept.get(site, np.zeros_like(down[C]))
            target, curvature = sites[site]
            after, gradient = train(down[X], down[C], own, target, curvature)
            opened.add(site, {X: after, C: gradient - own}, IMAGES[site])
            kept[site] = gradient
        found.finish_round(opened, len(sites))
        path.append(found.tensors[X])
    return path


@pytest.mark.parametrize(("weighting", "minimum"), [("samples", 0.8), ("uniform", 0.0)])
def test_two_sites_of_nine_to_one_end_at_the_minimum_of_their_weighted_sum(weighting, minimum, tiny):
    found = server(tiny, weighting, 1)
    sites = {"a": ([1.0], [1.0]), "b": ([-1.0], [1.0])}  # with 900 and 100 images
    assert run_rounds(found, 80, sites, {})[-1] == pytest.approx(minimum, abs=1e-4)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_each_round_is_that_of_a_loop_that_knows_every_variate(weighting, tiny):
    """It averages all c_k anew after each round, with absent sites' old ones; x over those that are there."""
    sites = {site: (TARGETS[site], CURVATURE[site]) for site in TARGETS}
    found, rounds = server(tiny, weighting, 3), 60
    path = run_rounds(found, rounds, sites, {})
    weigh = {site: IMAGES[site] if weighting == "samples" else 1 for site in sites}
    x, c, own = np.zeros(3), np.zeros(3), {site: np.zeros(3) for site in sites}
    seen: set[str] = set()
    for number in range(rounds):
        there = sorted(set(sites) - set(AWAY.get(number, "")))
        ends = {}
        for site in there:
            target, curvature = np.array(TARGETS[site]), np.array(CURVATURE[site])
            y, gradients = x.copy(), []
            for _ in range(STEPS):
                gradients.append(curvature * (y - target))
                y -= RATE * (gradients[-1] - own[site] + c)
            ends[site], own[site] = y, np.mean(gradients, axis=0)
        seen |= set(there)
        x = np.average([ends[site] for site in there], axis=0, weights=[weigh[site] for site in there])
        # Nobody knows how many images a site has that has never answered.
        unknown = float(np.mean([weigh[one] for one in seen]))
        known = {site: float(weigh[site]) if site in seen else unknown for site in sites}
        c = np.average([own[site] for site in sites], axis=0, weights=[known[site] for site in sites])
        np.testing.assert_allclose(path[number], x, atol=2e-6)
    strength = {site: weigh[site] * np.array(CURVATURE[site]) for site in sites}
    minimum = sum(strength[site] * np.array(TARGETS[site]) for site in sites) / sum(strength.values())
    np.testing.assert_allclose(path[-1], minimum, atol=0.02)


def test_another_server_goes_on_from_the_state(tiny):
    sites = {site: (TARGETS[site], CURVATURE[site]) for site in TARGETS}
    whole, first, second = (server(tiny, "samples", 3) for _ in range(3))
    path = run_rounds(whole, 6, sites, {})
    kept: dict[str, np.ndarray] = {}
    run_rounds(first, 2, sites, kept)
    second.take_over(first.state(2), 2)
    np.testing.assert_array_equal(run_rounds(second, 4, sites, kept, first=2), path[2:])
    state = first.state(2)
    for key, value in (("weight/a", np.zeros(1)), ("weights", np.ones(1)), ("weight/a", np.ones(2)), ("q", np.ones(1))):
        with pytest.raises(TensorError):
            server(tiny, "samples", 3).take_over({**state, key: value}, 2)
    with pytest.raises(TensorError, match="missing: 'weights'"):
        server(tiny, "samples", 3).take_over({key: state[key] for key in (X, C)}, 2)


def test_a_site_whose_images_change_keeps_its_weight_in_c(tiny):
    """Else c would be no mean of the sites' c_k any more: the server does not hold the c_k that it has added."""
    found = server(tiny, "samples", 1)
    for number, (images, own, before) in enumerate(((30, 1.0, 0.0), (300, 2.0, 1.0))):
        opened = found.start_round(number)
        opened.add("a", {X: np.zeros(1, np.float32), C: np.array([own - before], np.float32)}, images)
        if not number:
            opened.add("b", {X: np.zeros(1, np.float32), C: np.zeros(1, np.float32)}, 10)
        found.finish_round(opened, 2)
    assert found.tensors[C] == pytest.approx(0.75 * 2.0)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_with_a_model_the_servers_variate_is_the_mean_of_what_the_sites_keep(weighting, tiny, site):
    experiment = changed(
        tiny,
        method={"name": "lora", "options": {}},
        training={"control_variates": True},
        aggregation={"weighting": weighting},
        federation={"rounds": 3},
    )
    names = ["site-1", "site-2", "site-3"]
    trainer, data = make_trainer(experiment, site), load_sites(experiment, site, names)
    train = {name: data[name].train for name in names}
    train["site-2"] = type(train["site-2"])(train["site-2"].images[:7], train["site-2"].labels[:7])
    exchange, kept = trainer.exchange, {name: {} for name in names}
    found = FederationServer(experiment, exchange, initial_exchanged(trainer.experiment, exchange, trainer.initial))
    for number, there in enumerate((names, names[:2], names[1:])):
        opened = found.start_round(number)
        for name in there:
            received = transfer.decode_down(experiment, exchange, name, found.payload(name, 0, number), 0, number)
            result = local_round(trainer, name, train[name], received, kept[name], number)
            opened.add(name, result.payload, result.num_samples)
            kept[name] = result.kept
        found.finish_round(opened, 3)
        weights = [len(train[name]) if weighting == "samples" else 1 for name in names]
        assert any(found.tensors[key].any() for key in exchange.control)
        for key in exchange.trained(0):
            own = [kept[name][f"own control/{key}"] for name in names]
            mean = np.average(own, axis=0, weights=weights)
            np.testing.assert_allclose(found.tensors[CONTROL + key], mean, atol=1e-6)
