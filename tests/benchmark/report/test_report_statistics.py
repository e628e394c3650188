"""Weighted metrics against scikit-learn, slopes against numpy, intervals against what they should cover."""

import numpy as np
import pytest
from report_suites import PARAMETERS, known, logits_of, scalars, write_suite
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from benchmark.report.comparisons import compare_backbones
from benchmark.report.panels import Model, panels
from benchmark.report.results import read_results
from benchmark.report.slopes import fit
from benchmark.report.statistics import (
    METRICS,
    Estimate,
    WeightedMetrics,
    least_squares_slopes,
    over_seeds,
    resample,
    with_percentiles,
)

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
    scores, predicted = softmax(logits, axis=1), logits.argmax(axis=1)
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


def test_percentiles_leave_out_what_is_undefined():
    found = with_percentiles(1.0, np.array([np.nan, *np.linspace(0, 2, 101)]))
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(1.95))
    assert with_percentiles(1.0, np.array([np.nan])).low is None


def test_slope_is_numpys():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=7), generator.normal(size=(7, 4))
    np.testing.assert_allclose(least_squares_slopes(x, y), np.polyfit(x, y, 1)[0])
    assert least_squares_slopes(np.array([3.0, 4.0, 5.0]), np.array([[10.0], [14.0], [18.0]])) == pytest.approx(4.0)


def test_resampling_is_repeatable_paired_and_centred():
    labels = np.random.default_rng(0).integers(CLASSES, size=400)
    model = {seed: WeightedMetrics(logits_of(labels, 0.7, seed), labels) for seed in (0, 1)}
    counts = {0: 400, 1: 400}
    first = resample({"a": model, "b": model}, counts, 300)
    np.testing.assert_array_equal(first["a"], first["b"])
    np.testing.assert_array_equal(first["a"], resample({"a": model}, counts, 300)["a"])
    everything = np.mean([one(np.ones((400, 1), np.float32))[:, 0] for one in model.values()], axis=0)
    np.testing.assert_allclose(first["a"].mean(axis=1), everything, atol=0.01)
    # With one seed, only the images vary: a binomial share.
    share = model[0](np.ones((400, 1), np.float32))[0, 0]
    alone = resample({"a": {0: model[0]}}, {0: 400}, 1000)["a"][0]
    assert alone.std() == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.1)


def test_a_fit_is_a_line_through_the_means_and_covers_the_truth(suite_panels):
    for panel, truth in zip(suite_panels, (0.0, 6.0), strict=True):
        for backbone in panel.backbones:
            found = known(fit(panel, backbone, "accuracy"))
            means = [
                100 * np.mean(list(panel.tested(Model(backbone, method), "accuracy").values()))
                for method in found.methods
            ]
            slope, intercept = np.polyfit(np.log10([PARAMETERS[method] for method in found.methods]), means, 1)
            assert (found.slope.value, found.intercept) == (pytest.approx(slope), pytest.approx(intercept))
            low, high = known(found.slope.low), known(found.slope.high)
            assert low < truth < high
            assert high - low < 6
            assert found.points(10**4.5) == pytest.approx(60, abs=8)
            assert (found.methods, found.seeds) == (
                tuple(sorted(PARAMETERS, key=lambda name: PARAMETERS[name])),
                (0, 1, 2),
            )


def test_identical_initial_models_differ_by_exactly_nothing(tmp_path):
    path = write_suite(tmp_path / "suite.jsonl", methods=("lora", "full"))
    content = path.read_text()
    path.write_text(content + content.replace("imagenet", "twin"))
    (panel,) = panels(read_results(path), 200)
    found = compare_backbones(panel)
    assert [row.method for row in found] == ["lora", "full", None]
    assert all(one == Estimate(0, 0, 0) for row in found for one in row.by_metric.values())


def test_a_better_initial_model_is_found_better(suite_panels):
    (*by_method, together) = compare_backbones(suite_panels[0])
    assert len(by_method) == len(PARAMETERS)
    assert (together.first, together.second, together.seeds) == ("imagenet", "lesions", (0, 1, 2))
    difference = known(together.by_metric["balanced_accuracy"])
    assert known(difference.low) < -10 < known(difference.high) < 0
    by_hand = np.mean([known(row.by_metric["balanced_accuracy"]).value for row in by_method])
    assert difference.value == pytest.approx(by_hand)
