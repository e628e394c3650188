r"""The mean over sites whose images weigh by class, for ``training.imbalance`` ``federation_weights``.

    x = Σ_k W_k x_k / Σ_k W_k,    W_k = Σ_c n_kc w_c

with n_kc images of class c at site k and w_c the weight of each. As site k minimises the mean of w_y ℓ over its images,
divided by the mean of w_y, one step of gradient descent on all of its images and this mean make one step on the
weighted mean of ℓ over all images of all sites.
"""

from collections.abc import Mapping

import numpy as np

from pt_peft.exchange.aggregation.base import Collected, stacked
from pt_peft.exchange.tensors import Array, Tensors


class ClassWeightedMean(Collected):
    """Weighs sites by their images of each class."""

    def __init__(self, counts: Mapping[str, Array], class_weights: Array):
        """Starts a round.

        Args:
            counts: training images of each class by site, float64 (K,).
            class_weights: w_c, float64 (K,).
        """
        super().__init__()
        self._weights = {site: float(images @ class_weights) for site, images in counts.items()}

    def result(self) -> Tensors:
        """Returns the mean in the tensors' own dtypes. Raises ValueError if nothing was added."""
        results = self.results()
        weights = np.array([self._weights[result.site] for result in results])
        weights /= weights.sum()
        self.shares = {result.site: float(weight) for result, weight in zip(results, weights, strict=True)}
        return {
            key: np.tensordot(weights, stacked(results, key), axes=1).astype(value.dtype)
            for key, value in results[0].tensors.items()
        }
