"""What the server takes from one site, whatever it aggregates by."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from helpers import changed
from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.server_optimizers import ServerOptimizer
from pt_peft.exchange.tensors import TensorError, TensorSpec
from pt_peft.federation.server import LARGEST, FederationServer

SPECS = {"l.lora_A": TensorSpec((2, 6), "float32"), "l.lora_B": TensorSpec((8, 2), "float32")}


def server(experiment, aggregation, optimizer):
    fields = {
        "aggregation": TypeAdapter(Aggregation).validate_python(aggregation),
        "server_optimizer": TypeAdapter(ServerOptimizer).validate_python(optimizer),
    }
    start = {key: np.ones(spec.shape, np.float32) for key, spec in SPECS.items()}
    return FederationServer(experiment.model_copy(update=fields), Exchange(SPECS, frozenset(SPECS)), start)


@pytest.mark.parametrize("value", [LARGEST * 1.01, 3.4e38])
def test_values_that_are_absurd_are_refused_and_add_nothing(value, tiny):
    found = server(tiny, {"name": "mean"}, {"name": "none"})
    opened = found.start_round(0)
    bad = {key: np.full(spec.shape, -value, np.float32) for key, spec in SPECS.items()}
    with pytest.raises(TensorError, match=r"tensor 'l\.lora_A' has values up to .*; at most 1e\+06 would be right"):
        opened.add("site-1", bad, 10)
    opened.add("site-2", found.tensors, 10)
    found.finish_round(opened, 2)
    assert all((value == 1).all() for value in found.tensors.values())


@pytest.mark.parametrize(
    ("aggregation", "optimizer"),
    [({"name": "mean"}, {"name": name}) for name in ("none", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "swa")]
    + [({"name": name}, {"name": "none"}) for name in ("lora_product", "lora_fair", "norm_bounded_mean", "median")],
)
def test_the_largest_that_one_site_may_send_keeps_all_finite(aggregation, optimizer, tiny):
    """Twenty rounds long, with a factor that is zero as well."""
    found = server(changed(tiny, federation={"rounds": 20}), aggregation, optimizer)
    for number in range(20):
        opened = found.start_round(number)
        sign = LARGEST if number % 2 else -LARGEST
        opened.add(
            "liar", {"l.lora_A": np.zeros((2, 6), np.float32), "l.lora_B": np.full((8, 2), sign, np.float32)}, 2**40 - 1
        )
        opened.add("site-2", {key: np.full(spec.shape, sign, np.float32) for key, spec in SPECS.items()}, 10)
        found.finish_round(opened, 2)
        assert all(np.isfinite(value).all() for value in found.tensors.values())


@pytest.mark.parametrize(
    ("aggregation", "shares"),
    [
        ({"name": "mean"}, {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.15, "e": 0.25}),
        ({"name": "mean", "weighting": "uniform"}, dict.fromkeys("abcde", 0.2)),
        ({"name": "lora_product"}, {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.15, "e": 0.25}),
        ({"name": "norm_bounded_mean"}, dict.fromkeys("abcde", 0.2)),
        ({"name": "multi_krum", "f": 1}, {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25, "e": 0.0}),
        ({"name": "median"}, {}),
        ({"name": "trimmed_mean"}, {}),
    ],
)
def test_how_much_of_the_aggregate_is_whose(aggregation, shares, tiny):
    found = server(tiny, aggregation, {"name": "none"})
    opened = found.start_round(0)
    for site, images, value in (("a", 10, 1.0), ("b", 20, 1.1), ("c", 30, 1.2), ("d", 15, 1.3), ("e", 25, 9.0)):
        opened.add(site, {key: np.full(spec.shape, value, np.float32) for key, spec in SPECS.items()}, images)
    found.finish_round(opened, 5)
    assert opened.shares == pytest.approx(shares)


def test_a_mean_by_variance_says_what_it_gave_each_site(tiny):
    found = server(tiny, {"name": "mean", "weighting": "inverse_variance"}, {"name": "none"})
    opened = found.start_round(0)
    for site, value in (("a", 1.0), ("b", 1.1), ("c", 5.0)):
        opened.add(site, {key: np.full(spec.shape, value, np.float32) for key, spec in SPECS.items()}, 10)
    found.finish_round(opened, 3)
    assert sum(opened.shares.values()) == pytest.approx(1)
    assert opened.shares["c"] < 0.2 < opened.shares["a"] < opened.shares["b"]


@pytest.mark.parametrize(
    ("imbalance", "weighting", "bias", "x"),
    [
        ("federation_weights", "samples", [6, 6, 6], 6),  # one class of three, and two
        ("federation_weights", "class_samples", [2, 8, 8], 6),
        ("balanced_softmax", "class_samples", [2, 8, 8], 84 / 18),  # 10 images, and 8
    ],
)
def test_sites_weigh_by_their_images_of_each_class(imbalance, weighting, bias, x, tiny):
    specs = {"head.bias": TensorSpec((3,), "float32"), "x": TensorSpec((2,), "float32")}
    exchange = Exchange(specs, frozenset(specs), head=frozenset({"head.bias"}))
    experiment = changed(
        tiny,
        data={"classes": ["naevus", "melanoma", "dermatofibroma"]},
        training={"imbalance": imbalance},
        aggregation={"name": "mean", "weighting": weighting},
    )
    found = FederationServer(
        experiment, exchange, {key: np.zeros(spec.shape, np.float32) for key, spec in specs.items()}
    )
    found.class_counts = {"a": np.array([10.0, 0, 0]), "b": np.array([0.0, 7, 1])}
    again = FederationServer(experiment, exchange, found.tensors)
    again.take_over(found.state(0), 0)
    opened = again.start_round(0)
    for name, value in (("a", 2), ("b", 8)):
        opened.add(name, {key: np.full(spec.shape, value, np.float32) for key, spec in specs.items()}, 12)
    with pytest.raises(TensorError, match="has not sent how many training images of each class"):
        opened.add("c", found.tensors, 12)
    again.finish_round(opened, 3)
    np.testing.assert_allclose(again.tensors["head.bias"], bias)
    np.testing.assert_allclose(again.tensors["x"], [x, x])
    assert opened.shares == pytest.approx({"a": (8 - x) / 6, "b": (x - 2) / 6})


@pytest.mark.parametrize("aggregation", ["mean", "median"])
def test_swa_ends_with_the_mean_of_the_last_aggregates_also_in_a_job_that_goes_on(aggregation, tiny):
    rounds = 5
    experiment = changed(tiny, federation={"rounds": rounds})
    found = server(experiment, {"name": aggregation}, {"name": "swa", "last_rounds": 3})
    random, aggregates = np.random.default_rng(0), []
    for number in range(rounds):
        opened = found.start_round(number)
        sent = [random.standard_normal((3, 2, 6)), random.standard_normal((3, 8, 2))]
        for site, a, b in zip("abc", *sent, strict=True):
            opened.add(site, {"l.lora_A": a.astype(np.float32), "l.lora_B": b.astype(np.float32)}, 10)
        found.finish_round(opened, 3)
        combined = np.median if aggregation == "median" else np.mean
        aggregates.append([combined(values, axis=0) for values in sent])
        last = aggregates[2:] if number == rounds - 1 else aggregates[-1:]
        expected = [np.mean(values, axis=0) for values in zip(*last, strict=True)]
        for key, value in zip(SPECS, expected, strict=True):
            np.testing.assert_allclose(found.tensors[key], value, rtol=0, atol=1e-6)
        again = server(experiment, {"name": aggregation}, {"name": "swa", "last_rounds": 3})
        again.take_over(found.state(number + 1), number + 1)
        again.optimizer.state = {key: value.copy() for key, value in found.optimizer.state.items()}
        found = again
