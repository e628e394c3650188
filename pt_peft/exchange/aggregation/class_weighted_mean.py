r"""The mean over sites of which the server knows how many training images of each class they have.

    x = Σ_k W_k x_k / Σ_k W_k,    row c of the classifier = Σ_k n_kc x_kc / Σ_k n_kc

with n_kc images of class c at site k, and W_k = Σ_c n_kc w_c. For a mean by images w is 1. With
``training.imbalance`` ``federation_weights`` a site minimises the mean of w_y ℓ over its images, divided by the mean of
w_y: one step of gradient descent on all images of each site and this mean are one step on the weighted mean of ℓ over
the images of all sites.

The classifier's rows are averaged by class with ``weighting`` ``class_samples`` of `Mean`, and are then no such step.
But sites train with AdamW, which moves a row as far at a site with three images of its class as at one with a thousand,
and leaves it where it was at a site at which ``balanced_softmax`` gives it no gradient.
"""

from collections.abc import Collection, Mapping

import numpy as np

from pt_peft.exchange.aggregation.base import Collected, stacked
from pt_peft.exchange.tensors import Array, Tensors


class ClassWeightedMean(Collected):
    """Weighs sites, and rows of the classifier, by the images that sites have."""

    def __init__(self, before: Tensors, counts: Mapping[str, Array], class_weights: Array, head: Collection[str] = ()):
        """Starts a round.

        Args:
            before: the exchanged tensors that the round started from.
            counts: training images of each class by site, float64 (K,); of every site whose result is added.
            class_weights: w_c, float64 (K,); ones for a mean by images.
            head: keys of the tensors that have a row for each class, and are averaged by class.
        """
        super().__init__()
        self._before = before
        self._counts = counts
        self._class_weights = class_weights
        self._head = head

    def result(self) -> Tensors:
        """Returns the mean in the dtypes of `before`, whose rows stay where no site has images of their class.

        Raises:
            ValueError: if nothing was added.
        """
        results = self.results()
        counts = np.stack([self._counts[result.site] for result in results])
        weights = counts @ self._class_weights
        weights /= weights.sum()
        self.shares = {result.site: float(weight) for result, weight in zip(results, weights, strict=True)}
        of_class, known = counts / np.maximum(counts.sum(axis=0), 1), counts.any(axis=0)
        mean: Tensors = {}
        for key in results[0].tensors:
            values, before = stacked(results, key), self._before[key]
            if key in self._head:
                rows = np.einsum("kc,kc...->c...", of_class, values)
                mean[key] = np.where(known.reshape(-1, *[1] * (before.ndim - 1)), rows, before)
            else:
                mean[key] = np.tensordot(weights, values, axes=1)
        return {key: value.astype(self._before[key].dtype) for key, value in mean.items()}
