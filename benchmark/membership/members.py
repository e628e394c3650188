"""Which images each model is trained on, and which models are the shadows of which."""

from collections.abc import Mapping

import numpy as np

from pt_peft.seeds import derive_seed


def members(seed: int, sizes: Mapping[str, int], model: int) -> dict[str, np.ndarray]:
    """One half of each site's images, drawn at random; models 2i and 2i+1 have the two halves of a draw, so that every image
    is in exactly half of an even number of models. Of an odd number of images, model 2i has the smaller half.

    Args:
        sizes: training images by site.
        model: its number, from 0. A draw does not depend on how many models there are.

    Returns:
        By site bool (N,), true for members.
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
    """Numbers of the models that an attack on `target` may look at: all but itself and its complement, int64 (`models` - 2,).

    Without the complement every image is in exactly half of the shadows. With it, members of the target would be in one shadow
    less than the others, and the counts alone would move the likelihoods.
    """
    numbers = np.arange(models)
    return numbers[numbers // 2 != target // 2]
