r"""FedAvgM (Hsu et al. 2019, arXiv:1909.06335): heavy-ball momentum at the server.

m <- momentum m + (mean - x),    x <- x + learning_rate m
"""

from typing import Literal

import numpy as np
from pydantic import Field

from pt_peft.exchange.server_optimizers.base import Optimizer
from pt_peft.exchange.tensors import Tensors
from pt_peft.schema import Strict


class FedAvgM(Strict):
    """Momentum with a constant learning rate."""

    name: Literal["fedavgm"]
    learning_rate: float = Field(default=1.0, gt=0, le=100)
    """The server's step size; 1 with momentum 0 is the mean itself."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """What m keeps of itself in a round."""

    def start(self) -> Optimizer:
        """Starts with an empty state."""
        return Momentum(self.learning_rate, self.momentum)


class Momentum:
    """Computes in float64. `state` has m of every tensor that has trained, by its key."""

    reaches_back = False

    def __init__(self, learning_rate: float, momentum: float):
        self._learning_rate = learning_rate
        self._momentum = momentum
        self.state: Tensors = {}

    def step(self, before: Tensors, mean: Tensors, remaining: int) -> Tensors:
        """Returns x for the next round, see `Optimizer.step`."""
        after: Tensors = {}
        for key, value in mean.items():
            start = before[key].astype(np.float64)
            m = self._momentum * self.state.get(key, 0.0) + (value - start)
            self.state[key] = m
            after[key] = (start + self._learning_rate * m).astype(value.dtype)
        return after
