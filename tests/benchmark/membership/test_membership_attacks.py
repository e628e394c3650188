"""Members, scores of attacks and their success, on numbers made by hand or drawn from Gaussians."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmark.membership.attacks import PER_IMAGE, lira_offline, lira_online, loss_threshold
from benchmark.membership.members import members, shadows_of
from benchmark.membership.models import confidence
from benchmark.membership.success import chance, success

SIZES = {"a": 40, "b": 7}


def drawn(models: int, size: int, seed: int = 0) -> np.ndarray:
    return np.stack([members(seed, {"a": size}, model)["a"] for model in range(models)])


def gaussian(models: int, size: int, effect: float, spread: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Confidences (M,N,1) that are `effect` standard deviations higher for members, and the members (M,N)."""
    generator = np.random.default_rng(0)
    is_member = drawn(models, size)
    std = generator.uniform(0.2, 5, size) if spread else np.ones(size)
    easy = generator.normal(0, 5, size)
    return (easy + std * (effect * is_member + generator.normal(size=(models, size))))[:, :, None], is_member


def auc(attack, confidences: np.ndarray, is_member: np.ndarray, targets: int = 6) -> float:
    return float(np.mean([success(attack(confidences, is_member, one), is_member[one]).auc for one in range(targets)]))


def test_every_image_is_in_half_of_the_models_and_every_model_has_half_of_each_site():
    of_models = [members(3, SIZES, model) for model in range(10)]
    for site, size in SIZES.items():
        found = np.stack([one[site] for one in of_models])
        assert (found.sum(axis=0) == 5).all()
        assert found.sum(axis=1).tolist() == [size // 2, size - size // 2] * 5
        assert (found[0::2] == ~found[1::2]).all()


def test_members_follow_from_the_seed_the_site_and_the_model():
    one = members(3, SIZES, 4)
    assert all((one[site] == members(3, dict(reversed(SIZES.items())), 4)[site]).all() for site in SIZES)
    assert one["a"].nonzero()[0][:5].tolist() == [2, 3, 7, 8, 9]
    assert (one["a"] != members(4, SIZES, 4)["a"]).any()
    assert (one["a"] != members(3, SIZES, 6)["a"]).any()
    assert (one["a"] != members(3, {"b": 40}, 4)["b"]).any()


@pytest.mark.parametrize("models", [6, 16])
def test_a_target_is_not_among_its_shadows_and_both_kinds_are_as_many(models):
    is_member = drawn(models, 30)
    for target in range(models):
        shadows = shadows_of(target, models)
        assert target not in shadows
        assert len(set(shadows)) == models - 2
        assert (is_member[shadows].sum(axis=0) == models // 2 - 1).all()


@pytest.mark.parametrize("attack", [loss_threshold, lira_offline, lira_online])
def test_scores_take_nothing_from_what_the_attacker_must_not_know(attack):
    confidences, is_member = gaussian(6, 50, 1.0)
    for target in range(6):
        scores = attack(confidences, is_member, target)
        told, other = is_member.copy(), confidences.copy()
        told[target] = ~told[target]
        other[target ^ 1] = 1e6  # its complement
        assert (attack(other, told, target) == scores).all()
        moved = confidences.copy()
        moved[target] += 1
        assert (attack(moved, is_member, target) != scores).all()


def test_the_order_of_the_loss():
    logits = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(30) % 4
    values = confidence(logits, labels)
    chances = logits[0].double().softmax(dim=1)[torch.arange(30), labels]
    assert torch.allclose(values[0], torch.log(chances / (1 - chances)), atol=1e-6)
    scores = loss_threshold(values.T.numpy()[None], np.zeros((2, 30), bool), 0)
    losses = torch.nn.functional.cross_entropy(logits[0].double(), labels, reduction="none")
    assert scores == pytest.approx(-losses.numpy())
    sure = confidence(torch.tensor([[[200.0, 0.0], [-200.0, 0.0]]]), torch.tensor([0, 0]))
    assert sure.tolist() == [[200.0, -200.0]]  # where the probability is 1 and 0 in any precision


@pytest.mark.parametrize("shadows", [4, 60])
@pytest.mark.parametrize("effect", [0.0, 0.5, 2.0])
def test_offline_lira_has_the_area_that_gaussians_give(shadows, effect):
    """The mean of n = shadows / 2 models has variance 1/n; the difference of two scores has variance 2 (1 + 1/n)."""
    expected = NormalDist().cdf(effect / np.sqrt(2 * (1 + 2 / shadows)))
    assert auc(lira_offline, *gaussian(shadows + 2, 20_000, effect)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("effect", [0.5, 2.0])
def test_online_lira_has_the_area_that_gaussians_give(effect):
    """With many shadows both means are known, and the ratio rises with the confidence: Phi(d' / sqrt 2)."""
    area = auc(lira_online, *gaussian(PER_IMAGE, 20_000, effect))
    assert area == pytest.approx(NormalDist().cdf(effect / np.sqrt(2)), abs=0.015)


@pytest.mark.parametrize("shadows", [4, PER_IMAGE])
def test_online_lira_tells_nothing_where_nothing_is_to_be_told(shadows):
    assert auc(lira_online, *gaussian(shadows + 2, 20_000, 0.0)) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("attack", [lira_offline, lira_online])
def test_enough_shadows_give_each_image_its_own_variance(attack):
    """The effect is two of each image's standard deviations, which differ by a factor of 25."""
    few, many = (auc(attack, *gaussian(shadows + 2, 4000, 2.0, spread=True)) for shadows in (PER_IMAGE - 2, PER_IMAGE))
    assert few < many - 0.01
    assert many == pytest.approx(NormalDist().cdf(2 / np.sqrt(2)), abs=0.02)


def test_queries_with_noise_of_their_own_tell_as_much_as_they_add():
    is_member = drawn(62, 20_000)
    four = 0.5 * is_member[:, :, None] + np.random.default_rng(1).normal(size=(*is_member.shape, 4))
    expected = NormalDist().cdf(0.5 / np.sqrt(2 * (1 + 1 / 30) / 4))
    assert auc(lira_offline, four, is_member) == pytest.approx(expected, abs=0.01)
    assert expected > auc(lira_online, four, is_member) > auc(lira_online, four[:, :, :1], is_member) + 0.08
    for attack in (lira_offline, lira_online):
        same = np.repeat(four[:, :, :1], 4, axis=2)
        assert attack(same, is_member, 0) == pytest.approx(attack(four[:, :, :1], is_member, 0))


def test_models_that_are_all_the_same_tell_nothing():
    confidences, is_member = np.zeros((6, 20, 1)) + np.arange(20)[:, None], drawn(6, 20)
    for attack in (lira_offline, lira_online):
        scores = attack(confidences, is_member, 0)
        assert success(scores, is_member[0]).auc == 0.5
        assert success(scores, is_member[0]).balanced_accuracy == 0.5


def test_success_by_hand():
    #         members 4, 3, 2, 2     others 3, 2, 1, 0
    scores = np.array([4, 3, 2, 2, 3, 2, 1, 0.0])
    is_member = np.arange(8) < 4
    found = success(scores, is_member)
    assert found.auc == (4 + 3.5 + 2 * 2.5) / 16
    assert found.balanced_accuracy == 0.75  # from 2 up: all members, two of four others
    assert found.tpr == (None, None)
    assert success(scores, ~is_member).balanced_accuracy == 0.5  # by calling nobody a member
    assert success(np.ones(8), is_member).auc == 0.5
    assert success(-scores, ~is_member).auc == found.auc


def test_areas_are_those_of_sklearn():
    generator = np.random.default_rng(0)
    for levels in (3, 10, 10_000):
        scores, is_member = generator.integers(levels, size=200).astype(float), generator.random(200) < 0.3
        assert success(scores, is_member).auc == pytest.approx(roc_auc_score(is_member, scores), abs=1e-12)


def test_true_positive_rates_need_enough_others_and_count_ties_as_alarms():
    def rates(members_at, others_at):
        scores = np.concatenate([members_at, others_at]).astype(float)
        return success(scores, np.arange(len(scores)) < len(members_at)).tpr

    others = np.arange(100)  # one of them may be called a member: 99
    assert rates([99.5, 98.5, 97.5, 0], others) == (0.5, None)
    assert rates([99.5, 98, 97.5, 0], others) == (0.25, None)  # 98 would call a second other
    assert rates([99.5, 98.5], others[1:]) == (None, None)
    assert rates([999.5, 998.5, 995.5, 980], np.arange(1000)) == (0.75, 0.5)
    assert rates([5, 5], np.full(1000, 5)) == (0.0, 0.0)


def test_chance_is_what_guessing_reaches():
    assert chance(1, 1) == pytest.approx(
        0.75, abs=0.03
    )  # the member comes first in one half of the orders: 1.0, else 0.5
    assert 0.5 < chance(5000, 5000) < 0.515 < chance(32, 32)
