"""Draws the training images of each model, and chooses the shadows of each target."""

from collections.abc import Mapping

import numpy as np

from pt_peft.seeds import derive_seed


def members(seed: int, sizes: Mapping[str, int], model: int) -> dict[str, np.ndarray]:
    """Draws one half of each site's images at random.

    Models 2i and 2i+1 have the two halves of a draw, so every image is in exactly half of an even number of models.
    Where the number of images is odd, model 2i has the smaller half.

    Args:
        seed: of the draw.
        sizes: training images by site.
        model: its index. A draw does not depend on the number of models.

    Returns:
        For each site bool (N,), true for members.
    """
    drawn = {}
    for site, size in sizes.items():
        generator = np.random.default_rng(derive_seed(seed, "membership", site, model // 2))
        drawn[site] = np.zeros(size, bool)
        drawn[site][generator.permutation(size)[: size // 2]] = True
        if model % 2:
            drawn[site] = ~drawn[site]
    return drawn


def shadows_of(target: int, models: int) -> np.ndarray:
    """Indices of the models that an attack on `target` may look at, int64 (`models` - 2,).

    They are all but the target and its complement. Without the complement every image is in exactly half of the
    shadows. With it, the target's members would be in one shadow fewer than other images, and the counts alone would
    move the likelihoods.
    """
    numbers = np.arange(models)
    return numbers[numbers // 2 != target // 2]
