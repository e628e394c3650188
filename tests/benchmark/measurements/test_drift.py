"""The slope of a series and its interval."""

import numpy as np
import pytest

from benchmark.measurements.drift import BINS, Drift, drift, mean_drift

SECONDS = list(np.arange(0, 3600, 10.0))


def test_a_slope_is_in_units_an_hour_and_within_its_interval():
    noise = np.random.default_rng(0).normal(0, 1, len(SECONDS))
    fit = drift(SECONDS, list(100 + 7 * np.array(SECONDS) / 3600 + noise))
    assert fit is not None
    assert fit.low < 7 < fit.high
    assert fit.low > 5
    assert fit.high < 9


def test_a_flat_series_has_zero_in_its_interval():
    fit = drift(SECONDS, list(np.random.default_rng(1).normal(100, 5, len(SECONDS))))
    assert fit is not None
    assert fit.low < 0 < fit.high


def test_few_samples_say_nothing():
    assert drift(SECONDS[: BINS - 1], SECONDS[: BINS - 1]) is None


def test_several_processes_give_the_interval_of_their_mean():
    """t with one degree of freedom: 12.706 standard errors, here of 1."""
    assert mean_drift([]) is None
    one = Drift(1.0, 0.5, 1.5)
    assert mean_drift([one]) == one
    mean = mean_drift([Drift(1.0, 0.9, 1.1), Drift(3.0, 2.9, 3.1)])
    assert mean is not None
    assert mean.slope == 2
    assert mean.high - mean.slope == pytest.approx(12.706, abs=1e-3)
