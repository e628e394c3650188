"""Weighted metrics against scikit-learn, slopes against numpy, intervals against what they should cover."""

from typing import Any

import numpy as np
import pytest
from report_suites import PARAMETERS, known, logits_of, scalars, write_suite
from scipy.special import softmax
from scipy.stats import linregress, t, ttest_1samp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from benchmark.measurements.intervals import (
    Estimate,
    Shared,
    holm,
    over_seeds,
    p_value,
    shared_by_images,
    shared_by_methods,
    slopes_of,
)
from benchmark.oracle.predictions import group_numbers
from benchmark.report.comparisons import adjusted, compare_backbones
from benchmark.report.panels import Model, panels
from benchmark.report.results import read_results
from benchmark.report.slopes import fit
from benchmark.report.statistics import METRICS, WeightedMetrics, resample

CLASSES = 4


@pytest.fixture(scope="module")
def weights():
    """A resampling's, with many zeros: (N,R)."""
    return np.random.default_rng(1).multinomial(200, np.full(200, 1 / 200), size=5).T.astype(np.float32)


def tied_logits(labels: np.ndarray) -> np.ndarray:
    """Rounded so far that most scores are shared."""
    return np.round(logits_of(labels, 0.5, "ties", CLASSES).astype(np.float64) / 3)


def test_weighted_metrics_are_scikit_learns(weights):
    labels = np.random.default_rng(0).integers(CLASSES, size=200)
    logits = tied_logits(labels)
    found = WeightedMetrics(logits, labels)(weights)
    scores, predicted = softmax(logits, axis=1).round(12), logits.argmax(axis=1)  # without what tells equal ones apart
    for column, weight in enumerate(weights.T.astype(np.float64)):
        areas = [roc_auc_score(labels == label, scores[:, label], sample_weight=weight) for label in range(CLASSES)]
        wanted = [
            accuracy_score(labels, predicted, sample_weight=weight),
            balanced_accuracy_score(labels, predicted, sample_weight=weight),
            np.mean(areas),
        ]
        np.testing.assert_allclose(found[:, column], wanted, atol=1e-6)


def test_weighted_metrics_of_many_labels_are_scikit_learns(weights):
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=(200, 3)).astype(np.uint8)
    logits = np.round(generator.normal(labels, 1.0), 1)
    found = WeightedMetrics(logits, labels)(weights)
    for column, weight in enumerate(weights.T.astype(np.float64)):
        by_label = [
            (
                accuracy_score(labels[:, label], logits[:, label] > 0, sample_weight=weight),
                balanced_accuracy_score(labels[:, label], logits[:, label] > 0, sample_weight=weight),
                roc_auc_score(labels[:, label], logits[:, label], sample_weight=weight),
            )
            for label in range(3)
        ]
        np.testing.assert_allclose(found[:, column], np.mean(by_label, axis=0), atol=1e-6)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_equal_weights_give_the_metrics_of_the_cells(task):
    generator = np.random.default_rng(2)
    labels = generator.integers(2, size=(150, 3)) if task == "multilabel" else generator.integers(3, size=150)
    logits = generator.normal(size=(150, 3)).astype(np.float16)
    found = WeightedMetrics(logits, labels)(np.ones((150, 1), np.float32))
    wanted = scalars(logits, labels, task)
    np.testing.assert_allclose(found[:, 0], [wanted[metric] for metric in METRICS], atol=1e-6)


def test_a_class_that_was_not_drawn_is_left_out():
    labels, logits = np.array([0, 0, 1, 2]), np.eye(3)[[0, 1, 1, 2]]
    found = WeightedMetrics(logits, labels)(np.array([[1, 1, 2, 0], [1, 1, 0, 0]], np.float32).T)
    # Classes 0 and 1: one of the two images of class 0 is right, and ties with class 1 in both scores.
    np.testing.assert_allclose(found[:, 0], [3 / 4, (1 / 2 + 1) / 2, 3 / 4])
    np.testing.assert_allclose(found[:2, 1], [1 / 2, 1 / 2])
    assert np.isnan(found[2, 1]), "one class alone has no ROC curve"


def test_intervals_over_seeds():
    estimate = over_seeds([0.5, 0.6, 0.7])
    assert estimate.value == pytest.approx(0.6)
    assert known(estimate.high) - 0.6 == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert over_seeds([0.5]).low is None


def test_what_seeds_share_widens_the_interval():
    alone = over_seeds([0.5, 0.6, 0.7])
    found = over_seeds([0.5, 0.6, 0.7], Shared(0.02 / 3, 4))
    assert known(alone.high) - 0.6 == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert found == alone, "6 degrees of freedom would make it narrower"
    found = over_seeds([0.5, 0.6, 0.7], Shared(0.03, 4))
    variance = 0.01 / 3 + 0.03
    freedom = variance**2 / ((0.01 / 3) ** 2 / 2 + 0.03**2 / 4)
    assert known(found.high) - 0.6 == pytest.approx(float(t.ppf(0.975, freedom)) * variance**0.5)
    assert over_seeds([0.5, 0.6, 0.7], Shared(0.0, 4)) == alone


def test_p_values_are_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 6)
    by_scipy: Any = ttest_1samp(values, 0)
    assert p_value(values.tolist()) == pytest.approx(by_scipy.pvalue)
    assert p_value([0.1]) is None
    assert p_value([0.0, 0.0]) == 1
    assert p_value([0.1, 0.1]) == 0


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]


def test_slope_is_numpys():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=7), generator.normal(size=(7, 4))
    np.testing.assert_allclose(slopes_of(x, y), np.polyfit(x, y, 1)[0])
    assert slopes_of(np.array([3.0, 4.0, 5.0]), np.array([[10.0], [14.0], [18.0]])) == pytest.approx(4.0)


def test_what_methods_share_is_what_least_squares_has_where_seeds_agree():
    x, off = np.arange(6.0), np.array([0.3, -1.0, 0.5, 0.9, -1.1, 0.4])
    found = known(shared_by_methods(x, np.repeat((2 * x + off)[:, None], 3, axis=1)))
    by_scipy: Any = linregress(x, 2 * x + off)
    assert found.variance == pytest.approx(by_scipy.stderr**2)
    assert found.freedom == 4
    assert shared_by_methods(x[:2], np.zeros((2, 3))) is None
    noise = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert known(shared_by_methods(x, np.stack([noise, -noise], axis=1))).variance == 0


def test_what_images_share_is_the_covariance_of_two_seeds():
    replicates = np.random.default_rng(0).multivariate_normal([0, 0, 0], np.eye(3) + 0.5, 2000).T
    covariances = np.cov(replicates)
    found = shared_by_images(np.hstack([replicates, np.full((3, 1), np.nan)]), 11)
    assert found.variance == pytest.approx((covariances.sum() - np.trace(covariances)) / 6)
    assert found.freedom == 10
    assert shared_by_images(np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), 11).variance == 0


def test_resampling_draws_clusters_for_all_seeds_and_models_at_once():
    labels = np.random.default_rng(0).integers(CLASSES, size=400)
    model = {seed: WeightedMetrics(logits_of(labels, 0.7, seed), labels) for seed in (0, 1)}
    alone = group_numbers(map(str, range(400)))
    first = resample({"a": model, "b": {0: model[0], 1: model[0]}}, {0: alone, 1: alone}, 500)
    np.testing.assert_array_equal(first["b"][:, 0], first["b"][:, 1])
    np.testing.assert_array_equal(first["a"][:, 0], first["b"][:, 0])
    np.testing.assert_array_equal(first["a"], resample({"a": model}, {0: alone, 1: alone}, 500)["a"])
    ones = np.ones((400, 1), np.float32)
    np.testing.assert_allclose(first["a"][:, 0].mean(axis=1), model[0](ones)[:, 0], atol=0.01)
    share = model[0](ones)[0, 0]
    assert first["a"][0, 0].std() == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.1)
    # Four copies of each image are one cluster: a quarter of the images, twice the spread.
    copies = WeightedMetrics(np.tile(logits_of(labels[:100], 0.7, 0), (4, 1)), np.tile(labels[:100], 4))
    cluster = group_numbers(map(str, [*range(100)] * 4))
    drawn = resample({"a": {0: copies}}, {0: cluster}, 500)["a"][0, 0]
    share = copies(ones)[0, 0]
    assert drawn.std() == pytest.approx((share * (1 - share) / 100) ** 0.5, rel=0.1)


def test_a_bootstrap_is_shown_for_five_seeds_that_share_images(tmp_path):
    """With three there is none; with five folds it says what t over folds says; with the same images it is wider."""
    found = {}
    for name, seeds, same in (("few", 3, True), ("folds", 5, False), ("same", 5, True)):
        path = write_suite(
            tmp_path / f"{name}.jsonl", methods=("lora", "full"), images=80, seeds=tuple(range(seeds)), same_images=same
        )
        (panel,) = panels(read_results(path), 400)
        lora = Model("imagenet", "lora")
        found[name] = known(panel.found({lora: 1.0}, "accuracy", tuple(range(seeds))))
        assert found[name].over_seeds == panel.estimate(lora, "accuracy")
    assert found["few"].over_images is None
    assert found["folds"].over_images == found["folds"].over_seeds
    narrow, wide = found["same"].over_seeds, known(found["same"].over_images)
    assert wide.value == narrow.value
    assert known(wide.high) >= known(narrow.high)


def test_a_fit_is_a_line_through_the_means_and_covers_the_truth(suite_panels):
    for panel, truth in zip(suite_panels, (0.0, 6.0), strict=True):
        for backbone in panel.backbones:
            found = known(fit(panel, backbone, "accuracy"))
            means = [
                100 * np.mean(list(panel.tested(Model(backbone, method), "accuracy").values()))
                for method in found.methods
            ]
            slope, intercept = np.polyfit(np.log10([PARAMETERS[method] for method in found.methods]), means, 1)
            estimate = found.slope.over_seeds
            assert (estimate.value, found.intercept) == (pytest.approx(slope), pytest.approx(intercept))
            assert over_seeds(found.by_seed) == estimate
            assert known(estimate.low) < truth < known(estimate.high)
            wide = known(found.over_methods)
            assert known(wide.low) <= known(estimate.low)
            assert known(wide.high) - known(wide.low) < 12
            assert found.points(10**4.5) == pytest.approx(60, abs=8)
            assert (found.methods, found.seeds) == (
                tuple(sorted(PARAMETERS, key=lambda name: PARAMETERS[name])),
                (0, 1, 2),
            )


def test_identical_initial_models_differ_by_exactly_nothing(tmp_path):
    path = write_suite(tmp_path / "suite.jsonl", methods=("lora", "full"))
    content = path.read_text()
    path.write_text(content + content.split("\n", 1)[1].replace("imagenet", "twin"))
    (panel,) = panels(read_results(path), 200)
    found = compare_backbones(panel)
    assert [row.method for row in found] == ["lora", "full", None]
    assert all(known(one).over_seeds == Estimate(0, 0, 0) for row in found for one in row.by_metric.values())
    assert adjusted(found, "accuracy") == [1, 1, 1]


def test_a_better_initial_model_is_found_better(suite_panels):
    (*by_method, together) = compare_backbones(suite_panels[0])
    assert len(by_method) == len(PARAMETERS)
    assert (together.first, together.second, together.seeds) == ("imagenet", "lesions", (0, 1, 2))
    difference = known(together.by_metric["balanced_accuracy"]).over_seeds
    assert known(difference.low) < -10 < known(difference.high) < 0
    by_hand = np.mean([known(row.by_metric["balanced_accuracy"]).over_seeds.value for row in by_method])
    assert difference.value == pytest.approx(by_hand)
    p = adjusted([*by_method, together], "balanced_accuracy")
    assert 0 < known(p[-1]) < 0.05
