r"""SWA (Izmailov et al. 2018, arXiv:1803.05407) at the server (Caldarola et al. 2022, arXiv:2203.11834).

    x <- mean in every round;    after the last one  x <- (1/n) Σ mean over the last n rounds

A tensor that trains in some rounds alone is averaged over those of the last n rounds in which it trains. LoRA's factors
are averaged each for itself, as in the mean over sites: the mean of products B A is not the product of the means.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.server_optimizers.base import Optimizer
from pt_peft.exchange.tensors import Tensors
from pt_peft.schema import Strict


class Swa(Strict):
    """The rounds go on from each aggregate; the final model is the mean of the last rounds' aggregates."""

    name: Literal["swa"]
    last_rounds: int = Field(default=3, ge=1, le=100_000)
    """n. A schedule that decays to zero, such as ``cosine``, leaves little to average."""

    def start(self) -> Optimizer:
        """Starts with an empty state."""
        return MeanOfLast(self.last_rounds)


class MeanOfLast:
    """Adds up in float64. In the last rounds `state` has ``sum/KEY`` and ``rounds/KEY`` of what has trained in them."""

    def __init__(self, last_rounds: int):
        self._last_rounds = last_rounds
        self.state: Tensors = {}
        self.reaches_back = False

    def step(self, before: Tensors, mean: Tensors, remaining: int) -> Tensors:
        """Returns `mean`, after the last round the mean over rounds, see `Optimizer.step`."""
        if remaining >= self._last_rounds:
            return mean
        for key, value in mean.items():
            self.state[f"sum/{key}"] = self.state.get(f"sum/{key}", 0.0) + value.astype(np.float64)
            self.state[f"rounds/{key}"] = self.state.get(f"rounds/{key}", np.zeros(1)) + 1
        if remaining:
            return mean
        keys = [name.removeprefix("sum/") for name in self.state if name.startswith("sum/")]
        self.reaches_back = len(keys) > len(mean)
        return {key: (self.state[f"sum/{key}"] / self.state[f"rounds/{key}"]).astype(before[key].dtype) for key in keys}
