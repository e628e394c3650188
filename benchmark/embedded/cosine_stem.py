"""The start of the patch embedding: cosines instead of random numbers.

A random projection of a patch is mostly its mean colour, and a layer norm then hides the texture; it takes thousands of
steps to undo that. Cosines keep an image's frequencies apart from the first step (Ahmed, Natarajan and Rao 1974,
"Discrete Cosine Transform"), and scaling each to unit variance makes them equally loud.
"""

import numpy as np
import torch
from torch import Tensor, nn

_OPPONENTS = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]], np.float64)  # grey, red against blue, green against magenta


@torch.no_grad()
def start_with_cosines(projection: nn.Conv2d, images: Tensor) -> None:
    """Sets a patch embedding's weights, in place: half its outputs see grey, a quarter each of two colour axes.

    Args:
        projection: timm's ``patch_embed.proj``, (width, 3, side, side) with width <= 2 side^2 and a multiple of 4.
        images: normalised float32 (count, 3, size, size), whose cosine coefficients get mean 0 and variance 1.

    Raises:
        ValueError: if the patch embedding has no bias.
    """
    width, _, side, _ = projection.weight.shape
    place = (np.arange(side) + 0.5) * np.pi / side
    wave = np.cos(np.arange(side)[:, None] * place)
    wave /= np.linalg.norm(wave, axis=1, keepdims=True)
    planes = np.einsum("iy,jx->ijyx", wave, wave)
    frequency = np.add.outer(np.arange(side) ** 2, np.arange(side) ** 2)
    slow_first = planes.reshape(-1, side, side)[np.argsort(frequency, axis=None, kind="stable")]
    axes = _OPPONENTS / np.linalg.norm(_OPPONENTS, axis=1, keepdims=True)
    shares = (width // 2, width // 4, width // 4)
    weight = np.concatenate(
        [axis[None, :, None, None] * slow_first[:n, None] for axis, n in zip(axes, shares, strict=True)]
    )
    bias = projection.bias
    if bias is None:
        raise ValueError("the patch embedding has no bias; timm's ViT with a bias would be right.")
    projection.weight.copy_(torch.from_numpy(weight))
    bias.zero_()
    outputs = projection(images)
    deviation, mean = torch.std_mean(outputs, dim=(0, 2, 3))
    projection.weight.div_(deviation[:, None, None, None])
    bias.copy_(-mean / deviation)
