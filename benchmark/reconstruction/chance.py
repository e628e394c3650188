r"""Tells what chance gives, and whether an attack comes nearer.

Members are the images that were trained on, others are images of the same sites that were not. If what an attack
builds says nothing of the members, all are alike to it: members and others can be exchanged. The *gain* of an image is
how much nearer the nearest candidate is than the mean of all other images, so that images that are near to anything
count no more.

Two tests are made on the gains of members and others. One asks whether members in general are nearer: Mann and
Whitney's rank test. The other asks whether the nearest member is nearer than so many others would be by chance. The
tail of the others' gains beyond a high threshold u is taken for exponential with the mean excess s (peaks over
threshold; Pickands 1975): of N members, by chance

    P(best gain ≥ g) ≤ N · P(gain > u) · exp(-(g - u) / s)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from benchmark.reconstruction.similarity import Floats, Nearness, measures

ALPHA = 0.01
"""The most that the chance of a false alarm of a whole audit may be."""
TAIL, LEAST_TAIL = 0.1, 5
"""Share of the others beyond the threshold, and the fewest."""
LEAST_OTHERS = 20
"""Fewer others tell too little of chance."""
_DRAWS, _SEED = 1000, 20240


@dataclass(frozen=True)
class Comparison:
    """Members against others."""

    psnr: float
    """Of the member with the greatest gain in PSNR, dB."""
    ssim: float
    """Of the member with the greatest gain in SSIM."""
    error: float
    """Greatest absolute difference of the member of the highest PSNR, grey levels of 255."""
    member: int
    """Index of that member."""
    chance_psnr: tuple[float, float, float]
    """The highest PSNR of as many others, drawn at random: mean, and 95 % of the draws lie between the others."""
    chance_ssim: tuple[float, float, float]
    p: float
    """Probability of such a result by chance, by both tests on both measures (Bonferroni)."""


def compare(members: Nearness, others: Nearness, to_mean: tuple[Floats, Floats]) -> Comparison:
    """Compares members with others.

    Args:
        members: of N images.
        others: of O images, at least `LEAST_OTHERS`.
        to_mean: of all of them, members first, as `to_mean_of_others` has it.
    """
    mean_psnr, mean_ssim = to_mean
    split = len(members.psnr)
    gains = [
        (members.psnr - mean_psnr[:split], others.psnr - mean_psnr[split:]),
        (members.ssim - mean_ssim[:split], others.ssim - mean_ssim[split:]),
    ]
    found = [test(*gain) for gain in gains for test in (rank_test, tail_test)]
    best = int(members.psnr.argmax())
    return Comparison(
        psnr=float(members.psnr[best]),
        ssim=float(members.ssim.max()),
        error=float(members.error[best]),
        member=best,
        chance_psnr=_best_of(others.psnr, split),
        chance_ssim=_best_of(others.ssim, split),
        p=min(1.0, len(found) * min(found)),
    )


def rank_test(members: Floats, others: Floats) -> float:
    """P of gains as high as the members' by chance (Mann and Whitney 1947), one-sided."""
    return float(mannwhitneyu(members, others, alternative="greater").pvalue)


def tail_test(members: Floats, others: Floats) -> float:
    """P of a gain as high as the members' best by chance, see the module."""
    ordered = np.sort(others)[::-1]
    size = min(max(LEAST_TAIL, int(np.ceil(TAIL * len(ordered)))), len(ordered) - 1)
    threshold, beyond = ordered[size], ordered[:size]
    excess = float(members.max() - threshold)
    if excess <= 0:
        return 1.0
    scale = max(float((beyond - threshold).mean()), 1e-9)
    return float(min(1.0, len(members) * size / len(ordered) * np.exp(-excess / scale)))


def to_mean_of_others(images: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """PSNR and SSIM, float64 (N,), of each image to the mean of all others, of images uint8 (N,3,S,S)."""
    total = images.sum(axis=0, dtype=np.float64)
    parts = []
    for start in range(0, len(images), 128):
        real = images[start : start + 128].astype(np.float64)
        parts.append(measures((total - real) / (len(images) - 1) / 255, real / 255))
    psnr, ssim = zip(*parts, strict=True)
    return np.concatenate(psnr), np.concatenate(ssim)


def _best_of(values: Floats, count: int) -> tuple[float, float, float]:
    generator = np.random.default_rng(_SEED)
    best = np.array([generator.choice(values, count).max() for _ in range(_DRAWS)])
    low, high = np.quantile(best, [0.025, 0.975])
    return float(best.mean()), float(low), float(high)
