"""Server optimisers against the formulas of their papers, written out for one number."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pt_peft.exchange.server_optimizers import ServerOptimizer

MEANS = [0.5, 0.8, 0.75, -0.2, 0.1]
"""What the sites' mean is in each round; the first round starts from 0.3."""


def run(section):
    optimizer = TypeAdapter(ServerOptimizer).validate_python(section).start()
    x, seen = {"x": np.full((1, 1), 0.3, np.float32), "other": np.zeros(2, np.float32)}, []
    for remaining, mean in zip(reversed(range(len(MEANS))), MEANS, strict=True):
        stepped = optimizer.step(x, {"x": np.full((1, 1), mean, np.float32)}, remaining)
        assert stepped.keys() == {"x"}
        assert stepped["x"].dtype == np.float32
        assert stepped["x"].shape == (1, 1)
        x = {**x, **stepped}
        seen.append(float(x["x"][0, 0]))
    return seen


def test_none():
    assert run({"name": "none"}) == pytest.approx(MEANS)


def test_fedavgm_is_sgd_with_momentum():
    parameter = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    sgd, expected = torch.optim.SGD([parameter], lr=0.7, momentum=0.9), []
    for mean in MEANS:
        parameter.grad = parameter.detach() - mean
        sgd.step()
        expected.append(parameter.item())
    assert run({"name": "fedavgm", "learning_rate": 0.7, "momentum": 0.9}) == pytest.approx(expected, rel=1e-6)


def second_moment(name, v, d):
    if name == "fedadagrad":
        return v + d * d
    if name == "fedadam":
        return 0.9 * v + 0.1 * d * d
    return v - 0.1 * d * d * math.copysign(1, v - d * d)


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive(name):
    """Algorithm 2 of Reddi et al. 2021."""
    options = {"learning_rate": 0.1, "beta1": 0.8, "tau": 0.01} | ({} if name == "fedadagrad" else {"beta2": 0.9})
    x, m, v, expected = 0.3, 0.0, 0.01**2, []
    for mean in MEANS:
        d = mean - x
        m = 0.8 * m + 0.2 * d
        v = second_moment(name, v, d)
        x = x + 0.1 * m / (math.sqrt(v) + 0.01)
        expected.append(x)
    assert run({"name": name, **options}) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("last_rounds", [1, 3, 5])
def test_swa_goes_on_from_each_mean_and_ends_with_the_mean_of_the_last(last_rounds):
    expected = [*MEANS[:-1], np.mean(MEANS[-last_rounds:])]
    assert run({"name": "swa", "last_rounds": last_rounds}) == pytest.approx(expected, rel=1e-6)


def test_swa_averages_what_trains_in_some_rounds_over_those():
    """Also what did not train in the last round; and nothing that trained before the last rounds alone."""
    optimizer = TypeAdapter(ServerOptimizer).validate_python({"name": "swa", "last_rounds": 3}).start()
    rounds = [{"a": 1.0, "z": 9.0}, {"a": 2.0, "b": 3.0}, {"a": 4.0, "b": 6.0}, {"a": 9.0, "c": 7.0}]
    x, stepped = {key: np.zeros(2, np.float32) for key in "abcz"}, {}
    for remaining, means in zip(reversed(range(4)), rounds, strict=True):
        stepped = optimizer.step(x, {key: np.full(2, value, np.float32) for key, value in means.items()}, remaining)
        x |= stepped
        assert bool(optimizer.state) == (remaining < 3)
        assert optimizer.reaches_back == (remaining == 0)
    assert {key: float(value[0]) for key, value in stepped.items()} == {"a": 5.0, "b": 4.5, "c": 7.0}
    assert all(value.dtype == np.float32 for value in stepped.values())


@pytest.mark.parametrize("name", ["none", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "swa"])
def test_no_change_at_first_is_no_step(name):
    optimizer = TypeAdapter(ServerOptimizer).validate_python({"name": name}).start()
    x = {"x": np.array([1.5, -2.25], np.float32)}
    np.testing.assert_array_equal(optimizer.step(x, x, 4)["x"], x["x"])
    optimizer.step(x, x, 0)
    assert not optimizer.reaches_back


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi", "swa"])
def test_a_state_that_is_taken_over_goes_on(name):
    section = TypeAdapter(ServerOptimizer).validate_python({"name": name})
    whole, first = section.start(), section.start()
    x, means = {"x": np.zeros(1, np.float32)}, [{"x": np.full(1, value, np.float32)} for value in MEANS]
    a = whole.step(whole.step(x, means[0], 1), means[1], 0)
    b = first.step(x, means[0], 1)
    second = section.start()
    second.state = {key: value.copy() for key, value in first.state.items()}
    np.testing.assert_array_equal(second.step(b, means[1], 0)["x"], a["x"])
