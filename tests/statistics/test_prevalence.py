"""Probabilities at another prevalence are Bayes' where what a class looks like is known."""

import numpy as np
import pytest

from pt_peft.statistics.prevalence import LEAST, estimated, probabilities, shift, smoothed

OLD, NEW = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.2, 0.7])


def densities(points):
    """log p(x | c) of three normal distributions around 0, 1 and 2, but for a constant."""
    return -((points[:, None] - np.arange(3.0)) ** 2) / 2


def drawn(shares, images, seed=0):
    """Points of a mixture."""
    draw = np.random.default_rng(seed)
    return draw.choice(3, images, p=shares) + draw.normal(size=images)


def test_it_is_bayes_at_the_new_prevalence():
    likelihood = densities(np.linspace(-3, 5, 9))
    learned = likelihood + np.log(OLD) + 3.7  # logits are known up to a constant
    right = np.exp(likelihood) * NEW / (np.exp(likelihood) @ NEW)[:, None]
    assert probabilities(learned + shift(OLD, NEW)) == pytest.approx(right, abs=1e-12)
    uniform = np.full(3, 1 / 3)
    assert probabilities(likelihood + shift(uniform, NEW)) == pytest.approx(right, abs=1e-12)


def test_each_label_moves_by_its_own_odds():
    p, old, new = np.array([[0.2, 0.9]]), np.array([0.5, 0.25]), np.array([0.1, 0.25])
    moved = probabilities(np.log(p / (1 - p)) + shift(old, new, multilabel=True), multilabel=True)
    odds = 0.25 * (1 / 9) / 1
    assert moved == pytest.approx(np.array([[odds / (1 + odds), 0.9]]), abs=1e-12)


def test_what_is_not_known_stays_and_nothing_is_infinite():
    assert shift(np.array([0.0, 0.5, 0.5]), NEW).tolist() == [0.0, np.log(0.2) - np.log(0.5), np.log(0.7) - np.log(0.5)]
    assert shift(np.array([0.5, 0.5]), np.array([0.0, 1.0])).tolist() == [0.0, np.log(2)]
    labels = shift(np.array([0.0, 1.0, 0.5]), np.array([0.2, 0.2, 0.5]), multilabel=True)
    assert labels.tolist() == [0.0, 0.0, 0.0]
    rows = shift(OLD, np.stack([OLD, NEW]))
    assert rows.shape == (2, 3)
    assert not rows[0].any()
    assert smoothed(np.array([3.0, 0.0]), 3, 0.5).tolist() == [3.5 / 4, 0.5 / 4]


def test_extreme_logits():
    assert probabilities(np.array([[1e4, -1e4]])).tolist() == [[1.0, 0.0]]
    assert probabilities(np.array([[1e4, -1e4]]), multilabel=True).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("learnt", [OLD, np.full(3, 1 / 3)], ids=["training", "uniform"])
def test_em_finds_the_prevalence_of_images_without_labels(learnt):
    points = drawn(NEW, 40_000)
    found = estimated(densities(points) + np.log(learnt), learnt)
    assert found == pytest.approx(NEW, abs=0.02)
    assert found.sum() == pytest.approx(1)


def test_em_is_the_most_likely_prevalence():
    points = drawn(NEW, 500)
    found = estimated(densities(points), np.full(3, 1 / 3))
    likelihood = np.exp(densities(points))

    def fit(shares):
        return np.log(likelihood @ shares).sum()

    others = np.random.default_rng(1).dirichlet(np.ones(3), 2000)
    assert fit(found) >= max(map(fit, others))


def test_em_of_labels():
    draw = np.random.default_rng(0)
    there = draw.random((20_000, 2)) < [0.1, 0.8]
    points = there * 2.0 + draw.normal(size=there.shape)
    odds = 2 * points - 2  # log p(x | 1) / p(x | 0), at even odds
    assert estimated(odds, np.full(2, 0.5), multilabel=True) == pytest.approx([0.1, 0.8], abs=0.02)


def test_em_rules_nothing_out():
    found = estimated(np.tile([50.0, -50.0], (10, 1)), np.full(2, 0.5))
    assert found[1] == LEAST
    assert np.isfinite(shift(np.full(2, 0.5), found)).all()
