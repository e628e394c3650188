"""FedAvg's mean (McMahan et al. 2017, arXiv:1602.05629)."""

import numpy as np

from pt_peft.tensors import Tensors


class WeightedMean:
    r"""sum_k n_k x_k / sum_k n_k over the sites' tensors x_k with sample counts n_k.

    Sums in float64, where a float32 times an integer below 2**29 is exact: the order in which results arrive moves the sum
    by parts in 2**53, far below what the float32 mean shows. Holds one copy of the state, whatever the number of sites.
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._weight = 0

    def add(self, tensors: Tensors, weight: int) -> None:
        """Adds one site's tensors (checked by the caller) with its number of samples, 1 or more."""
        for key, value in tensors.items():
            term = value.astype(np.float64) * weight
            if key in self._sums:
                self._sums[key] += term
            else:
                self._sums[key], self._dtypes[key] = term, value.dtype
        self._weight += weight

    def result(self) -> Tensors:
        """The mean in the tensors' own dtypes. Raises ValueError if nothing was added."""
        if not self._weight:
            raise ValueError("the mean of no results is not defined")
        return {key: (value / self._weight).astype(self._dtypes[key]) for key, value in self._sums.items()}
