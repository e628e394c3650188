"""What federated models reach with each site's own class frequencies."""

import numpy as np
import pytest
from report_suites import change, finished_cell, write_suite
from sklearn.metrics import balanced_accuracy_score

from benchmark.report.panels import panels
from benchmark.report.results import read_results
from benchmark.report.site_priors import prior_shift, site_prior_table, with_site_priors

AXES = {"domain": "d", "data": "lesions", "partition": "natural", "backbone": "b", "variant": "default"}
BALANCED = {"training": {"imbalance": "balanced_softmax"}, "data": {"task": "multiclass"}}


def test_the_shift_of_two_sites_of_other_frequencies():
    shift = prior_shift(np.array([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]]))
    assert shift == pytest.approx(np.log([[3.5 / 5 / 0.5, 1.5 / 5 / 0.5, 1], [1.5 / 5 / 0.5, 3.5 / 5 / 0.5, 1]]))


def test_a_class_that_a_site_lacks_is_kept():
    shift = prior_shift(np.array([[100.0, 0.0], [50.0, 50.0]]))
    assert np.isfinite(shift).all()
    assert shift[0, 1] < -4


def world(images: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits log p(x | c), labels, sites, and training images (2,4) of sites of other frequencies."""
    generator = np.random.default_rng(0)
    counts = np.array([[700.0, 100, 100, 100], [50, 50, 450, 450]])
    site = np.arange(images) % 2
    cumulated = np.cumsum(counts / counts.sum(axis=1, keepdims=True), axis=1)[site]
    labels = (generator.random((images, 1)) > cumulated).sum(axis=1)
    seen = np.eye(4)[labels] + generator.normal(size=(images, 4))
    return seen, labels, site, counts  # log N(x; e_c, 1) = x_c + what is the same for all c


def test_it_is_best_in_balanced_accuracy_over_all_sites():
    logits, labels, site, counts = world()

    def reached(share: float) -> float:
        answers = (logits + share * prior_shift(counts)[site]).argmax(axis=1)
        return float(balanced_accuracy_score(labels, answers))

    best = reached(1.0)
    assert best > reached(0.0) + 0.02
    assert all(best >= reached(share) - 1e-3 for share in (0.5, 0.75, 1.25, 1.5))


def test_the_metrics_of_a_cell():
    logits, labels, site, counts = world(400)
    cell = finished_cell({**AXES, "method": "lora", "seed": 1}, logits.astype(np.float16), labels)
    assert (cell.predictions.site == site).all()
    known = cell.model_copy(
        update={"experiment": BALANCED, "class_counts": dict(zip(("north", "south"), counts.astype(int), strict=True))}
    )
    found = with_site_priors(known)
    assert found
    answers = (cell.predictions.logits + prior_shift(counts)[site]).argmax(axis=1)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers), abs=1e-6)
    assert with_site_priors(known.model_copy(update={"class_counts": None})) is None
    weighted = {**BALANCED, "training": {"imbalance": "weighted_loss"}}
    assert with_site_priors(known.model_copy(update={"experiment": weighted})) is None


def test_the_table_stands_beside_pooled_training(tmp_path):
    path = write_suite(tmp_path / "paper.jsonl", variants=("balanced_softmax",), methods=("lora", "full"))
    results = read_results(path)
    (panel,) = panels(results, 0)
    assert site_prior_table(panel, "imagenet", results.baselines) is None, "no counts of classes"
    same = {"north": [10, 10, 10, 10], "south": [20, 20, 20, 20]}
    change(path, lambda line: line.update(class_counts=same))
    results = read_results(path)
    (panel,) = panels(results, 0)
    table = site_prior_table(panel, "imagenet", results.baselines)
    assert table
    assert [row[0].text for row in table.rows] == ["lora", "full"]
    for row in table.rows:
        assert row[3].text == row[4].text == "+0.0 [+0.0, +0.0]", "sites are alike"
        assert row[5].order is not None
