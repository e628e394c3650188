"""Adjustments of each step's gradients, made before the optimiser's step."""

from collections.abc import Callable, Container, Mapping

import torch
from torch import nn

from pt_peft.exchange.lora_pairs import rank_axis
from pt_peft.exchange.tensors import Tensors

Adjustment = Callable[[Mapping[str, nn.Parameter]], Callable[[], None]]
"""Takes the tensors that train in a round, by key, at their start; returns what to call after each backward pass."""


class Pull:
    """Adds the gradient of mu/2 · |w - target|², a term that the reported loss does not have."""

    def __init__(
        self, mu: float, parameters: Mapping[str, nn.Parameter], keys: Container[str], towards: Tensors | None = None
    ):
        """Starts to pull.

        Args:
            mu: strength of the pull.
            parameters: all tensors that train, by key, at their start.
            keys: keys of the tensors that are pulled.
            towards: the targets; None for the values at the start.
        """
        self._mu = mu
        self._pairs = [
            (
                parameter,
                parameter.detach().clone() if towards is None else torch.tensor(towards[key], device=parameter.device),
            )
            for key, parameter in parameters.items()
            if key in keys
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """Adds the term to the gradients."""
        for parameter, target in self._pairs:
            gradient_of(parameter).add_(self._mu * (parameter - target))


class Correction:
    """SCAFFOLD's correction: adds a constant to each gradient, and takes the mean of the gradients without it."""

    def __init__(self, shift: Tensors):
        """Keeps the constants.

        Args:
            shift: c - c_k, by key; tensors of other keys are left alone.
        """
        self._shift = shift
        self._steps = 0
        self._entries: list[tuple[str, nn.Parameter, torch.Tensor, torch.Tensor]] = []

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> Callable[[], None]:
        """Starts anew on `parameters`; an `Adjustment`."""
        self._steps = 0
        self._entries = []
        for key, value in self._shift.items():
            parameter = parameters[key]
            total = torch.zeros_like(parameter, dtype=torch.float64)
            self._entries.append((key, parameter, torch.tensor(value, device=parameter.device), total))
        return self._apply

    @torch.no_grad()
    def _apply(self) -> None:
        self._steps += 1
        for _, parameter, shift, total in self._entries:
            gradient = gradient_of(parameter)
            total += gradient
            gradient += shift

    def mean_gradients(self) -> Tensors:
        """The mean gradients over the steps so far, float32, by key."""
        return {key: (total / self._steps).float().cpu().numpy() for key, _, _, total in self._entries}


class RankLimit:
    """Keeps the components of LoRA's factors beyond a rank as the round found them: at zero."""

    def __init__(self, rank: int, parameters: Mapping[str, nn.Parameter]):
        """Finds the factors.

        Args:
            rank: number of components that train.
            parameters: all tensors that train, by key.
        """
        self._beyond: list[tuple[nn.Parameter, tuple[slice, ...]]] = []
        for key, parameter in parameters.items():
            if (axis := rank_axis(key)) is not None:
                self._beyond.append((parameter, (slice(None),) * axis + (slice(rank, None),)))

    @torch.no_grad()
    def __call__(self) -> None:
        """Sets the gradients of the components beyond the rank to zero."""
        for parameter, beyond in self._beyond:
            gradient_of(parameter)[beyond] = 0


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """The gradient that a backward pass has left.

    Raises:
        ValueError: if there is none.
    """
    if parameter.grad is None:
        raise ValueError("a tensor that trains has no gradient")
    return parameter.grad
