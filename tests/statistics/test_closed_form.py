"""Heads in closed form are scikit-learn's on the pooled features, whatever the partition, and finite for any input."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from pt_peft.statistics.closed_form import candidates, leave_one_out
from pt_peft.statistics.moments import Moments, class_counts, class_weights, effective_images, moments, specs, total

CLASSES, WIDTH = 4, 9
PENALTIES = (1e-4, 0.03, 0.7)


def images(seed, count=150, classes=CLASSES, width=WIDTH):
    """Features of several scales and offsets, float32, and skewed labels; every class has three images at least."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate(
        [np.repeat(np.arange(classes), 3), rng.choice(classes, count, p=rng.dirichlet([1] * classes))]
    )
    centres = rng.normal(size=(classes, width))
    features = (centres[labels] + rng.normal(size=(len(labels), width))) @ rng.normal(size=(width, width))
    return (features * 10.0 ** rng.uniform(-2, 2, width) + 5 * rng.normal(size=width)).astype(np.float32), labels


def sums_of_sites(features, labels, weights, seed, sites=5):
    """A random partition among sites, of which one has nothing, in a random order."""
    rng = np.random.default_rng(seed)
    site = rng.integers(sites - 1, size=len(labels))
    return [moments(features[site == one], labels[site == one], CLASSES, weights) for one in rng.permutation(sites)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_is_scikit_learns_on_the_pooled_images(seed, weighted):
    features, labels = images(seed)
    weights = class_weights(class_counts(labels, CLASSES)) if weighted else None
    of_image = weights[labels] if weights is not None else np.ones(len(labels))
    heads = candidates("ridge", total(sums_of_sites(features, labels, weights, seed)), weights, PENALTIES)
    scaler = StandardScaler().fit(features.astype(np.float64), sample_weight=of_image)
    for penalty, head in zip(PENALTIES, heads, strict=True):
        ridge = Ridge(alpha=penalty * of_image.sum())
        ridge.fit(scaler.transform(features.astype(np.float64)), np.eye(CLASSES)[labels], sample_weight=of_image)
        weight = ridge.coef_ / scaler.scale_
        np.testing.assert_allclose(head.weight, weight, rtol=1e-6, atol=1e-6 * np.abs(weight).max())
        np.testing.assert_allclose(head.bias, ridge.intercept_ - weight @ scaler.mean_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_lda_is_scikit_learns_on_the_pooled_images(seed, weighted):
    """With weights for uniform priors; without, its covariance is that of the classes' shares, its priors ours."""
    features, labels = images(seed)
    counts = class_counts(labels, CLASSES)
    weights = class_weights(counts) if weighted else None
    heads = candidates("lda", total(sums_of_sites(features, labels, weights, seed)), weights, PENALTIES)
    priors = np.full(CLASSES, 1 / CLASSES) if weighted else counts / counts.sum()
    for penalty, head in zip(PENALTIES, heads, strict=True):
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=penalty, priors=priors)
        lda.fit(features.astype(np.float64), labels)
        weight, bias = lda.coef_ - lda.coef_.mean(axis=0), lda.intercept_ - np.log(priors)
        np.testing.assert_allclose(head.weight, weight, rtol=1e-6, atol=1e-6 * np.abs(weight).max())
        centred = head.bias - head.bias.mean()
        np.testing.assert_allclose(centred, bias - bias.mean(), rtol=1e-6, atol=1e-6 * np.abs(bias).max())


def test_any_set_of_sites_gives_what_their_images_give_in_one_place():
    """The weights are the federation's, of whom one site has then left."""
    features, labels = images(0)
    weights = class_weights(class_counts(labels, CLASSES))
    stays = np.arange(len(labels)) % 3 > 0
    of_sites = [
        moments(features[one], labels[one], CLASSES, weights) for one in np.array_split(np.flatnonzero(stays), 3)
    ]
    for kind in ("ridge", "lda"):
        [there], [pooled] = (
            candidates(kind, one, weights, [0.1])
            for one in (total(of_sites), moments(features[stays], labels[stays], CLASSES, weights))
        )
        np.testing.assert_allclose(there.logits(features), pooled.logits(features), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_without_each_image_is_the_refit(weighted):
    """With σ and λ Σ w of all images."""
    features, labels = images(1, count=40)
    weights = class_weights(class_counts(labels, CLASSES)) if weighted else None
    of_image = weights[labels] if weights is not None else np.ones(len(labels))
    exact = features.astype(np.float64)
    scaled = StandardScaler().fit(exact, sample_weight=of_image).transform(exact)
    all_images = moments(features, labels, CLASSES, weights)
    for penalty, logits in zip(
        PENALTIES, leave_one_out("ridge", all_images, weights, PENALTIES, features, labels), strict=True
    ):
        ridge = Ridge(alpha=penalty * of_image.sum())
        for left in range(len(labels)):
            kept = np.arange(len(labels)) != left
            ridge.fit(scaled[kept], np.eye(CLASSES)[labels[kept]], sample_weight=of_image[kept])
            np.testing.assert_allclose(logits[left], ridge.predict(scaled[left : left + 1])[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_lda_without_each_image_is_the_refit(weighted):
    features, labels = images(2, count=40)
    labels[labels == 3] = 0
    labels[0] = 3  # a class of one image has none without it
    weights = class_weights(class_counts(labels, CLASSES)) if weighted else None
    all_images = moments(features, labels, CLASSES, weights)
    penalties = (0.03, 0.7, 1.0)
    for penalty, logits in zip(
        penalties, leave_one_out("lda", all_images, weights, penalties, features, labels), strict=True
    ):
        for left in range(len(labels)):
            kept = np.arange(len(labels)) != left
            refit = moments(features[kept], labels[kept], CLASSES, weights)
            expected = candidates("lda", refit, weights, [penalty])[0].logits(features[left])
            np.testing.assert_allclose(
                logits[left] - logits[left].mean(), expected - expected.mean(), rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("kind", ["ridge", "lda"])
@pytest.mark.parametrize("penalty", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize(
    "case", ["class without images", "constant features", "all constant", "few images", "one image", "one class", "d=1"]
)
def test_degenerate_images_give_finite_heads(case, kind, penalty):
    features, labels = images(4, count=30)
    if case == "class without images":
        labels[labels == 1] = 0
    elif case == "constant features":
        features[:, [2, 5]] = 7, 0
    elif case == "all constant":
        features[:] = 3
    elif case == "few images":
        features, labels = features[:6], labels[:6]
    elif case == "one image":
        features, labels = features[:1], labels[:1]
    elif case == "one class":
        labels[:] = 2
    else:
        features = features[:, :1]
    for weighted in (False, True):
        weights = class_weights(class_counts(labels, CLASSES)) if weighted else None
        sums = moments(features, labels, CLASSES, weights)
        [head] = candidates(kind, sums, weights, [penalty])
        [left_out] = leave_one_out(kind, sums, weights, [penalty], features, labels)
        logits = head.logits(features)
        assert all(np.isfinite(one).all() for one in (logits, head.weight, head.bias, left_out))
        absent = np.setdiff1d(np.arange(CLASSES), labels)
        anything = head.logits(np.random.default_rng(0).normal(size=(500, features.shape[1])) * 100)
        assert not np.isin(anything.argmax(axis=1), absent).any()
        if case == "constant features" and kind == "ridge":
            assert not head.weight[:, [2, 5]].any()


def test_ridge_depends_on_no_scale_or_offset_of_a_feature():
    features, labels = images(5)
    changed = features.astype(np.float64) * 10.0 ** np.linspace(-3, 3, WIDTH) + np.linspace(-1, 1, WIDTH)
    heads = [candidates("ridge", moments(one, labels, CLASSES), None, [0.1])[0] for one in (features, changed)]
    np.testing.assert_allclose(heads[0].logits(features), heads[1].logits(changed), rtol=1e-6, atol=1e-6)


def test_lda_depends_on_no_scale_or_turn_of_all_features():
    features, labels = images(6)
    features = features.astype(np.float64) / features.std(axis=0)
    turn, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(WIDTH, WIDTH)))
    changed = 300 * features @ turn - 5
    heads = [candidates("lda", moments(one, labels, CLASSES), None, [0.1])[0] for one in (features, changed)]
    np.testing.assert_allclose(heads[0].logits(features), heads[1].logits(changed), rtol=1e-6, atol=1e-6)


def test_nothing_at_all_has_no_head():
    with pytest.raises(ValueError, match="no class has images"):
        candidates("ridge", moments(np.zeros((0, 3), np.float32), np.zeros(0, int), 2), None, [1.0])
    with pytest.raises(ValueError, match="no sums"):
        total([])


def test_sums_travel_as_they_are_declared():
    """At most once the upper triangle: 79.5 kB at width 192 and 7 classes, 1.2 MB at 768, but for counts."""
    features, labels = images(7)
    tensors = moments(features, labels, CLASSES).to_tensors()
    declared = specs(CLASSES, WIDTH)
    assert {key: (value.shape, str(value.dtype)) for key, value in tensors.items()} == {
        key: (spec.shape, spec.dtype) for key, spec in declared.items()
    }
    back = Moments.from_tensors(tensors)
    wide = features.astype(np.float64)
    np.testing.assert_allclose(back.matrix(), wide.T @ wide, rtol=1e-12)
    np.testing.assert_allclose(back.sums[2], wide[labels == 2].sum(axis=0), rtol=1e-12)


def test_a_class_with_fewer_images_than_the_least_is_in_no_sum():
    features, labels = images(8, count=60)
    counts = np.bincount(labels, minlength=CLASSES)
    least = int(np.sort(counts)[1])
    enough = counts[labels] >= least
    assert 0 < enough.sum() < len(labels)
    found, expected = (
        moments(features, labels, CLASSES, least=least),
        moments(features[enough], labels[enough], CLASSES),
    )
    for key, value in found.to_tensors().items():
        np.testing.assert_array_equal(value, expected.to_tensors()[key])
    np.testing.assert_array_equal(found.counts, np.where(counts >= least, counts, 0))


def test_weights_make_classes_count_alike():
    counts = np.array([10.0, 0, 30, 5])
    weights = class_weights(counts)
    np.testing.assert_allclose(weights * counts, [15, 0, 15, 15])
    assert not class_weights(np.zeros(3)).any()


def test_images_that_weigh_nothing_beside_one_class_are_not_counted():
    counts = np.array([3.0, 60, 37])
    assert effective_images(counts, np.ones(3)) == pytest.approx(100)
    assert effective_images(counts, np.array([1e200, 1, 1])) == pytest.approx(3)
    assert effective_images(counts, class_weights(counts)) == pytest.approx(9 / (1 / 3 + 1 / 60 + 1 / 37))
    assert effective_images(counts, np.zeros(3)) == 0
