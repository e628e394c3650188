"""The temperature is that of the pooled images, by sums of the sites."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pt_peft.statistics.temperature import TEMPERATURES, best_temperature, log_losses


@pytest.mark.parametrize("true", [0.07, 1.0, 5.3])
def test_the_sums_of_sites_give_the_minimum_of_all_images(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    labels = np.array([rng.choice(5, p=np.exp(one) / np.exp(one).sum()) for one in logits])
    logits *= true

    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        return (np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean()

    found: Any = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    best = np.exp(found.x)
    parts = [log_losses(logits[one], labels[one]) for one in np.array_split(np.arange(4000), [100, 900])]
    assert parts[0].shape == TEMPERATURES.shape
    assert best_temperature(np.sum(parts, axis=0)) == pytest.approx(best, rel=5e-3)
    assert best == pytest.approx(true, rel=0.1)


def test_what_says_nothing_has_temperature_one():
    assert best_temperature(log_losses(np.zeros((0, 3)), np.zeros(0, int))) == 1
    assert best_temperature(log_losses(np.zeros((8, 3)), np.zeros(8, int))) == 1


def test_the_grid_bounds_what_few_images_can_ask_for():
    sure = np.array([[30.0, 0], [0, 30]])
    assert best_temperature(log_losses(sure, np.array([0, 1]))) >= TEMPERATURES[0]
    assert best_temperature(log_losses(sure, np.array([1, 0]))) <= TEMPERATURES[-1]
