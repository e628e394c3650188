"""How near rebuilt images are to real ones: PSNR and SSIM, by MONAI."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.regression import PSNRMetric, SSIMMetric

Floats = npt.NDArray[np.floating]
_CHUNK = 128
"""Images that are compared at a time."""
MOST_DB = 200.0
"""PSNR of equal images, in place of infinity."""


@dataclass(frozen=True)
class Nearness:
    """For each of N real images its nearest candidate, by mean squared error."""

    psnr: Floats
    """float64 (N,), dB, with peaks of 1."""
    ssim: Floats
    """float64 (N,), with that candidate."""
    error: Floats
    """float64 (N,), greatest absolute difference to that candidate, in grey levels of 255."""


def nearness(candidates: Floats, images: npt.NDArray[np.uint8], turned: bool) -> Nearness:
    """Compares candidates with real images.

    Args:
        candidates: float64 (M,3,S,S) in [0,1].
        images: (N,3,S,S).
        turned: whether each candidate may also be turned and mirrored: training that augments sees images so.
    """
    candidates = orientations(candidates) if turned else candidates
    flat = candidates.reshape(len(candidates), -1)
    squares = (flat**2).sum(axis=1)
    parts = []
    for start in range(0, len(images), _CHUNK):
        real = images[start : start + _CHUNK] / 255.0
        # All but the image's own square, which is the same for all candidates.
        nearest = candidates[(squares - 2 * real.reshape(len(real), -1) @ flat.T).argmin(axis=1)]
        parts.append((*measures(nearest, real), 255 * np.abs(nearest - real).max(axis=(1, 2, 3))))
    return Nearness(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def measures(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """PSNR in dB and SSIM, float64 (N,) each, of pairs of images (N,3,S,S) in [0,1]."""
    pair = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    psnr = PSNRMetric(max_val=1.0, reduction="none")(*pair)
    ssim = SSIMMetric(spatial_dims=2, data_range=1.0, reduction="none")(*pair)
    return _numbers(psnr).clip(max=MOST_DB), _numbers(ssim)


def orientations(images: Floats) -> Floats:
    """Images (M,3,S,S) in their eight orientations (8M,3,S,S)."""
    turned = [np.rot90(images, quarter, axes=(2, 3)) for quarter in range(4)]
    return np.concatenate([*turned, *(np.flip(one, axis=3) for one in turned)])


def _numbers(values: object) -> Floats:
    assert isinstance(values, torch.Tensor)
    return values.reshape(-1).double().numpy()
