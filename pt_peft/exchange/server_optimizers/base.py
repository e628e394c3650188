"""What the server makes of the mean: an optimiser whose gradient is the federation's change in a round."""

from typing import Protocol

from pt_peft.exchange.tensors import Tensors


class Optimizer(Protocol):
    """Has a state, which a job that continues another takes over."""

    state: Tensors
    """Arrays by name; empty at first."""

    def step(self, before: Tensors, mean: Tensors) -> Tensors:
        """What the next round starts from.

        Args:
            before: what this round started from, by canonical key; more keys than those of `mean` do not matter.
            mean: the aggregate of what trained in this round.

        Returns:
            Tensors of the keys, shapes and dtypes of `mean`.
        """
