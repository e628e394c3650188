"""What all server optimisers share. Their gradient is the change that a round's aggregate makes."""

from typing import Protocol

from pt_peft.exchange.tensors import Tensors


class Optimizer(Protocol):
    """Makes the next round's start from the aggregate. A job that continues another takes over its state."""

    state: Tensors
    """Arrays by name; empty at first."""

    def step(self, before: Tensors, mean: Tensors) -> Tensors:
        """Returns the tensors that the next round starts from, with the keys, shapes and dtypes of `mean`.

        Args:
            before: the tensors that this round started from, by canonical key; may have more keys than `mean`.
            mean: the aggregate of the tensors that trained in this round.
        """
        ...
