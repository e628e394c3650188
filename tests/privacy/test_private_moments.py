"""One release of noised sums: its sensitivity by neighbours, its noise, and the head that it still gives."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pt_peft.experiment.privacy import StatisticsPrivacy
from pt_peft.privacy.draws import PublicDraws
from pt_peft.privacy.private_moments import (
    COUNT_WEIGHT,
    SECOND_WEIGHT,
    SENSITIVITY,
    SUM_WEIGHT,
    Projection,
    private_moments,
    repaired,
)
from pt_peft.statistics.closed_form import candidates
from pt_peft.statistics.moments import moments, total

SETTINGS = StatisticsPrivacy(noise_multiplier=1.0, max_feature_norm=3.0, delta=1e-5)
CLASSES, WIDTH = 3, 6


class NoDraws(PublicDraws):
    def normal(self, count):
        return np.zeros(count)


def weighted(sums):
    """The vector that the noise is made for."""
    rows, columns = np.triu_indices(sums.sums.shape[1])
    second = sums.second * np.where(rows == columns, 1, math.sqrt(2))
    return np.concatenate([COUNT_WEIGHT * sums.counts, SUM_WEIGHT * sums.sums.ravel(), SECOND_WEIGHT * second])


def exact(features, labels, projection):
    return weighted(private_moments(features, labels, CLASSES, projection, 1.0, NoDraws(0)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 2, 6]), st.floats(-6, 6))
def test_one_image_more_or_less_changes_the_release_by_the_sensitivity_at_most(seed, kept, scale):
    rng = np.random.default_rng(seed)
    projection = Projection.of(SETTINGS.model_copy(update={"projection": kept}), seed, WIDTH)
    features = rng.normal(size=(5, WIDTH)) * 10**scale * rng.uniform(0, 2, size=(5, 1))
    labels = rng.integers(CLASSES, size=5)
    change = np.linalg.norm(exact(features, labels, projection) - exact(features[1:], labels[1:], projection))
    assert change <= SENSITIVITY * (1 + 1e-9)
    norm = min(1.0, float(np.linalg.norm(projection.matrix @ features[0])))
    assert change == pytest.approx(math.sqrt(0.25 + 2.25 * norm**2 + norm**4 / 2), rel=1e-6)
    if scale > 4:
        assert change == pytest.approx(math.sqrt(3), rel=1e-6)


def test_an_image_whose_features_are_not_finite_counts_as_zero():
    projection = Projection.of(SETTINGS, 0, WIDTH)
    features = np.array([[np.inf] * WIDTH, [np.nan] * WIDTH, [1.0] * WIDTH])
    bounded = projection.bounded(features)
    assert not bounded[:2].any()
    np.testing.assert_allclose(bounded[2], 1 / 3)


def test_every_value_has_its_noise_once():
    """On the weighted vector, of which each second moment is a part once."""
    projection = Projection.of(SETTINGS, 0, WIDTH)
    nothing = np.zeros((1, WIDTH)), np.zeros(1, int)
    noise = np.array(
        [
            weighted(private_moments(*nothing, CLASSES, projection, 2.0, PublicDraws(seed)))
            - exact(*nothing, projection)
            for seed in range(4000)
        ]
    )
    assert noise.shape[1] == CLASSES + CLASSES * WIDTH + WIDTH * (WIDTH + 1) // 2
    np.testing.assert_allclose(noise.std(axis=0), 2 * math.sqrt(3), rtol=0.06)
    correlations = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(correlations).max() < 0.1


def test_the_projection_is_everybodys_and_keeps_norms_on_average():
    projected = SETTINGS.model_copy(update={"projection": 4})
    one, same, other = (Projection.of(projected, seed, 200).matrix for seed in (1, 1, 2))
    assert one.shape == (4, 200)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(one @ one.T, np.eye(4) * 200 / 4 / 9, atol=1e-12)
    np.testing.assert_array_equal(Projection.of(SETTINGS, 1, 5).matrix, np.eye(5) / 3)


def lesions(seed, counts=(900, 400, 60)):
    rng = np.random.default_rng(seed)
    centres = np.eye(CLASSES, WIDTH) * 2
    labels = np.repeat(np.arange(CLASSES), counts)
    return (centres[labels] + 0.4 * rng.normal(size=(len(labels), WIDTH))).astype(np.float32), labels


def test_little_noise_gives_the_head_without_noise():
    features, labels = lesions(0)
    projection = Projection.of(SETTINGS, 0, WIDTH)
    released = private_moments(features, labels, CLASSES, projection, 1e-9, PublicDraws(0))
    heads = [
        projection.lifted(candidates("lda", one, None, [0.1])[0])
        for one in (repaired(released, 1e-9, 1), moments(projection.bounded(features), labels, CLASSES))
    ]
    np.testing.assert_allclose(heads[0].logits(features), heads[1].logits(features), rtol=1e-6, atol=1e-5)


def test_a_head_from_noise_of_two_sites_still_tells_classes_apart():
    """Without the repair the noised covariance has negative eigenvalues, and no distance means anything."""
    features, labels = lesions(1)
    tests, truth = lesions(2)
    projection = Projection.of(SETTINGS, 0, WIDTH)
    rights: dict[str, list[float]] = {"repaired": [], "as released": []}
    for draw in range(8):
        parts = [
            private_moments(features[at::2], labels[at::2], CLASSES, projection, 2.0, PublicDraws(10 * draw + at))
            for at in (0, 1)
        ]
        released = total(parts)
        for name, one in (("repaired", repaired(released, 2.0, 2)), ("as released", released)):
            [head] = candidates("lda", one, None, [0.01])
            answers = projection.lifted(head).logits(tests).argmax(axis=1)
            rights[name].append(float(np.mean([(answers[truth == c] == c).mean() for c in range(CLASSES)])))
    assert np.mean(rights["repaired"]) > 0.85
    assert np.mean(rights["repaired"]) > np.mean(rights["as released"]) + 0.05


def test_classes_that_noise_alone_may_have_made_never_win():
    noise = private_moments(
        np.zeros((0, WIDTH)), np.zeros(0, int), CLASSES, Projection.of(SETTINGS, 0, WIDTH), 1.0, PublicDraws(3)
    )
    images, labels = lesions(4)
    there = labels != 2
    projection = Projection.of(SETTINGS, 0, WIDTH)
    released = private_moments(images[there], labels[there], CLASSES, projection, 1.0, PublicDraws(5))
    found = repaired(released, 1.0, 1)
    assert (found.counts > 0).tolist() == [True, True, False]
    logits = candidates("lda", found, None, [0.1])[0].logits(np.random.default_rng(0).normal(size=(300, WIDTH)))
    assert not (logits.argmax(axis=1) == 2).any()
    [head] = candidates("lda", repaired(noise, 1.0, 1), None, [0.1])
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.bias).all()


@pytest.mark.parametrize("releases", [1, 4])
def test_what_is_repaired_could_be_sums_of_images(releases):
    features, labels = lesions(6)
    projection = Projection.of(SETTINGS, 0, WIDTH)
    parts = [
        private_moments(features[at::releases], labels[at::releases], CLASSES, projection, 30.0, PublicDraws(at))
        for at in range(releases)
    ]
    released = total(parts)
    found = repaired(released, 30.0, releases)
    assert np.linalg.eigvalsh(released.matrix()).min() < 0
    assert (found.counts >= 0).all()
    present = found.counts > 0
    scatter = found.matrix() - found.sums[present].T @ (found.sums[present] / found.counts[present, None])
    floor = 2 * 30 * math.sqrt(3 * releases) / SECOND_WEIGHT * math.sqrt(WIDTH / 2)
    assert np.linalg.eigvalsh(scatter).min() >= floor * (1 - 1e-9)


def test_moments_of_the_release_travel_as_declared():
    features, labels = lesions(7)
    projection = Projection.of(SETTINGS.model_copy(update={"projection": 2}), 0, WIDTH)
    released = private_moments(features, labels, CLASSES, projection, 1.0, PublicDraws(0))
    assert {key: value.shape for key, value in released.to_tensors().items()} == {
        "statistics/counts": (CLASSES,),
        "statistics/sums": (CLASSES, 2),
        "statistics/second": (3,),
    }
