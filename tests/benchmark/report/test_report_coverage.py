"""What the report calls a 95 % interval holds the truth in 93 to 97 % of simulated reports, with 3 and 5 folds."""

import numpy as np
import pytest

from benchmark.measurements.intervals import over_seeds, shared_by_images, shared_by_methods, slopes_of
from benchmark.oracle.predictions import group_numbers
from benchmark.report.statistics import METRICS, resample

REPORTS = 4000
folds = pytest.mark.parametrize("folds", [3, 5])


def covered(estimates, truth=0.0) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in estimates]))


@folds
def test_metrics_and_paired_differences(folds):
    """Each fold has images and a training of its own; two models see the same images."""
    random = np.random.default_rng(folds)
    images = 150
    difficulty = random.normal(size=(REPORTS, folds, images))
    trained = random.normal(0.7, 0.15, size=(REPORTS, 2, folds, 1))  # of two models
    right = (difficulty[:, None] + random.normal(size=(REPORTS, 2, folds, images)) < trained).mean(axis=3)
    truth = right.mean()
    assert 0.93 <= covered((over_seeds(one) for one in right[:, 0]), truth) <= 0.97
    assert 0.93 <= covered(over_seeds(one) for one in right[:, 0] - right[:, 1]) <= 0.97


SPREADS = [(3.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 3.0)]
"""Standard deviations in points: of methods off the line, of folds' slopes per decade, of the rest."""


@folds
@pytest.mark.parametrize("spreads", SPREADS, ids=str)
def test_slopes_of_these_methods_and_of_any(folds, spreads):
    random = np.random.default_rng(folds)
    x = np.log10([1e3, 4e3, 7e3, 1e4, 3e4, 5e4, 9e4, 1e5, 6e5, 5e6])
    off, own, rest = spreads
    noise = random.normal(size=(REPORTS, len(x), folds)) * rest
    turned = noise + np.multiply.outer(x - x.mean(), random.normal(size=(REPORTS, folds)) * own).swapaxes(0, 1)
    these = turned + off * np.sin(7 * x)[:, None]
    slope = float(slopes_of(x, off * np.sin(7 * x)))
    assert 0.93 <= covered((over_seeds(slopes_of(x, y).tolist()) for y in these), slope) <= 0.97
    drawn = turned + random.normal(size=(REPORTS, len(x), 1)) * off
    found = (over_seeds(slopes_of(x, y).tolist(), shared_by_methods(x, y)) for y in drawn)
    assert 0.93 <= covered(found) <= 0.97


@pytest.mark.parametrize("spreads", [(1.0, 0.1, 0.5), (0.3, 0.3, 1.0)], ids=str)
@pytest.mark.parametrize("same", [True, False], ids=["the same images", "folds"])
def test_metrics_on_other_images(spreads, same):
    """Five seeds, tested on 60 lesions of two images each: the t interval over seeds alone misses what they share."""
    random = np.random.default_rng(5)
    seeds, lesions, draws = 5, 60, 200
    lesion, trained, rest = spreads
    reports = REPORTS // 2
    values = random.normal(size=(reports, 1 if same else seeds, lesions)) * lesion
    values = np.repeat(values, 2, axis=2) + random.normal(size=(reports, seeds, 1)) * trained
    values = values + random.normal(size=(reports, seeds, 2 * lesions)) * rest
    groups = {
        seed: group_numbers(f"{0 if same else seed} {image // 2}" for image in range(2 * lesions))
        for seed in range(seeds)
    }

    def mean_of(images):
        return lambda weights: np.broadcast_to(images @ weights / weights.sum(axis=0), (len(METRICS), weights.shape[1]))

    one = {number: dict(enumerate(map(mean_of, report))) for number, report in enumerate(values)}
    replicates = resample(one, groups, draws)
    clusters = lesions if same else seeds * lesions
    means = values.mean(axis=2)
    found = [
        over_seeds(means[number].tolist(), shared_by_images(replicates[number][0], clusters))
        for number in range(reports)
    ]
    assert 0.93 <= covered(found) <= 0.97
    if same and lesion > trained:
        assert covered(over_seeds(one) for one in means.tolist()) < 0.93
