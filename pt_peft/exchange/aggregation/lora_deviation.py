"""How far the product of the means of LoRA's factors is from the mean of their products."""

import numpy as np

from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.lora_factors import Factors, squared_norm, weights_of
from pt_peft.exchange.lora_pairs import pairs


class LoraDeviation:
    """Keeps the sites' LoRA factors of a round, and nothing else that they sent."""

    def __init__(self) -> None:
        self._results: list[SiteResult] = []

    def add(self, result: SiteResult) -> None:
        """Adds one site's result."""
        factors = {key: result.tensors[key] for pair in pairs(result.tensors) for key in (pair.a, pair.b)}
        self._results.append(SiteResult(result.site, factors, result.num_samples))

    def value(self) -> float | None:
        """‖mean(B A) - mean(B) mean(A)‖ / ‖mean(B A)‖ over all layers (Frobenius norm).

        Sites weigh by their training images. None if no layer has both factors exchanged, or all products are zero.
        """
        results = sorted(self._results, key=lambda result: result.site)
        if not results:
            return None
        weights = weights_of(results, by_samples=True)
        missed = whole = 0.0
        for pair in pairs(results[0].tensors):
            factors = Factors.of(results, pair, weights)  # one layer's at a time: float64 copies of all sites' factors
            missed += squared_norm(*factors.residual())
            whole += squared_norm(*factors.product_mean())
        return float(np.sqrt(max(missed, 0.0) / whole)) if whole > 0 else None
