"""What all server optimisers share. The gradient of most is the change that a round's aggregate makes."""

from typing import Protocol

from pt_peft.exchange.tensors import Tensors


class Optimizer(Protocol):
    """Makes the next round's start from the aggregate. A job that continues another takes over its state."""

    state: Tensors
    """Arrays by name; empty at first."""
    reaches_back: bool
    """Whether the last step has changed tensors that did not train in its round."""

    def step(self, before: Tensors, mean: Tensors, remaining: int) -> Tensors:
        """Returns the tensors that change: those that the next round starts from, or after the last one the final ones.

        They have the shapes and dtypes of `mean`, and its keys; after the last round perhaps more of `before`.

        Args:
            before: the tensors that this round started from, by canonical key; may have more keys than `mean`.
            mean: the aggregate of the tensors that trained in this round.
            remaining: number of rounds that follow this one.
        """
        ...
