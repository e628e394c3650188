"""PSNR and SSIM, and the tests against chance."""

import numpy as np
import pytest

from benchmark.reconstruction.chance import ALPHA, compare, rank_test, tail_test, to_mean_of_others
from benchmark.reconstruction.similarity import MOST_DB, nearness, orientations


def drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def test_psnr_ssim_and_error_have_their_values():
    grey = np.full((1, 3, 16, 16), 102, np.uint8)
    near = nearness(np.full((1, 3, 16, 16), 0.5), grey, turned=False)
    assert near.psnr == pytest.approx([20.0])  # a tenth of the peak
    assert near.error == pytest.approx([25.5])
    exact = nearness(grey / 255, grey, turned=False)
    assert exact.psnr == [MOST_DB]
    assert exact.ssim == pytest.approx([1.0])


def test_each_image_gets_its_nearest_candidate():
    images = drawn(3, 0)
    candidates = np.concatenate([drawn(2, 1) / 255, images[[2, 0]] / 255])
    near = nearness(candidates, images, turned=False)
    assert (near.psnr > 100).tolist() == [True, False, True]


def test_turned_images_count_where_training_turns():
    images = drawn(2, 0)
    assert len({one.tobytes() for one in orientations(images[:1])}) == 8
    turned = np.flip(np.rot90(images, 3, axes=(2, 3)), axis=2) / 255
    assert (nearness(turned, images, turned=True).psnr == MOST_DB).all()
    assert (nearness(turned, images, turned=False).psnr < 20).all()


def test_the_mean_of_others_leaves_the_image_out():
    images = np.stack([np.full((3, 16, 16), value, np.uint8) for value in (0, 51, 204)])
    psnr, _ = to_mean_of_others(images)
    # The others of the first are 127.5 away, half the peak.
    assert psnr[0] == pytest.approx(-20 * np.log10(0.5))
    assert psnr[1] == pytest.approx(-20 * np.log10(0.2))


@pytest.mark.parametrize("members", [1, 8, 384])
def test_false_alarms_are_as_rare_as_they_should_be(members):
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        gains = [generator.normal(size=(2, count)) for count in (members, 384)]
        p = 4 * min(test(one, other) for one, other in zip(*gains, strict=True) for test in (rank_test, tail_test))
        alarms += p < ALPHA
    assert alarms <= 12  # 5 expected; more than 12 of 500 have a probability of 0.2 %


def test_one_image_of_many_is_enough():
    generator = np.random.default_rng(0)
    members, others = generator.normal(size=384), generator.normal(size=384)
    assert tail_test(members, others) > ALPHA
    members[7] = 40
    assert rank_test(members, others) > ALPHA
    assert tail_test(members, others) < 1e-6


def test_a_trace_of_many_is_enough():
    generator = np.random.default_rng(0)
    members, others = generator.normal(0.5, size=384), generator.normal(size=384)
    assert rank_test(members, others) < 1e-6


def test_an_exact_copy_is_found_and_a_foreign_one_is_not():
    images = drawn(60, 0)
    mean = to_mean_of_others(images)

    def found(candidates: np.ndarray):
        return compare(*(nearness(candidates, part, turned=False) for part in (images[:4], images[4:])), mean)

    copy = found(images[[2]] / 255)
    assert copy.p < ALPHA
    assert (copy.member, copy.psnr, copy.error) == (2, MOST_DB, 0)
    assert copy.chance_psnr[1] <= copy.chance_psnr[0] <= copy.chance_psnr[2] < 12
    assert found(drawn(4, 1) / 255).p > ALPHA
