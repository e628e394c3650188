r"""FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2, without bias correction).

    d = mean - x,    m <- beta1 m + (1 - beta1) d,    x <- x + learning_rate m / (sqrt(v) + tau)

    FedAdagrad: v <- v + d^2
    FedAdam:    v <- beta2 v + (1 - beta2) d^2
    FedYogi:    v <- v - (1 - beta2) d^2 sign(v - d^2)

v starts at tau^2, the smallest start that the paper allows.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.server_optimizers.base import Optimizer
from pt_peft.exchange.tensors import Array, Tensors
from pt_peft.schema import Strict


class Adaptive(Strict):
    """The fields that the three share."""

    learning_rate: float = Field(default=0.01, gt=0, le=100)
    """The server's step size."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """What the moving average of changes keeps of itself in a round; 0 is no momentum."""
    tau: float = Field(default=1e-3, gt=0, le=1)
    """Adaptivity, in (0, 1]; the larger it is, the closer the step is to momentum with a constant step size."""


class FedAdagrad(Adaptive):
    """Adagrad: v is the sum of squared changes."""

    name: Literal["fedadagrad"]

    def start(self) -> Optimizer:
        """Starts with an empty state."""
        return AdaptiveOptimizer(self, lambda v, square: v + square)


class FedAdam(Adaptive):
    """Adam: v is a moving average of squared changes."""

    name: Literal["fedadam"]
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """What v keeps of itself in a round."""

    def start(self) -> Optimizer:
        """Starts with an empty state."""
        return AdaptiveOptimizer(self, lambda v, square: self.beta2 * v + (1 - self.beta2) * square)


class FedYogi(Adaptive):
    """Yogi: v moves towards the squared change by a step that does not depend on how far it is."""

    name: Literal["fedyogi"]
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """What v keeps of itself in a round."""

    def start(self) -> Optimizer:
        """Starts with an empty state."""
        return AdaptiveOptimizer(self, lambda v, square: v - (1 - self.beta2) * square * np.sign(v - square))


class AdaptiveOptimizer:
    """Computes in float64. `state` has ``m/KEY`` and ``v/KEY`` of every tensor that has trained."""

    reaches_back = False

    def __init__(self, config: Adaptive, second_moment: Callable[[Array, Array], Array]):
        """Starts without a state.

        Args:
            config: the settings.
            second_moment: computes the new v from the old v and d².
        """
        self._config = config
        self._second_moment = second_moment
        self.state: Tensors = {}

    def step(self, before: Tensors, mean: Tensors, remaining: int) -> Tensors:
        """Returns x for the next round, see `Optimizer.step`."""
        beta1, tau = self._config.beta1, self._config.tau
        after: Tensors = {}
        for key, value in mean.items():
            start = before[key].astype(np.float64)
            change = value - start
            m = beta1 * self.state.get(f"m/{key}", 0.0) + (1 - beta1) * change
            v = self._second_moment(self.state.get(f"v/{key}", np.full(value.shape, tau**2)), np.square(change))
            self.state[f"m/{key}"], self.state[f"v/{key}"] = m, v
            after[key] = (start + self._config.learning_rate * m / (np.sqrt(v) + tau)).astype(value.dtype)
        return after
