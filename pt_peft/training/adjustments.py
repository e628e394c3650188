"""What is done to the gradients of each step, before the optimiser takes it."""

from collections.abc import Callable, Container, Mapping

import torch
from torch import nn

from pt_peft.exchange.lora_pairs import rank_axis
from pt_peft.exchange.tensors import Tensors

Adjustment = Callable[[Mapping[str, nn.Parameter]], Callable[[], None]]
"""Given the tensors that train in a round, by key, at their start: what is to be called after each backward pass."""


class Pull:
    """The gradient of mu/2 times the squared distance from where the tensors are pulled to. The loss that is reported does not
    have the term.
    """

    def __init__(
        self, mu: float, parameters: Mapping[str, nn.Parameter], keys: Container[str], towards: Tensors | None = None
    ):
        """Args:
        keys: those that are pulled.
        towards: None for where they start.
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
        for parameter, target in self._pairs:
            parameter.grad += self._mu * (parameter - target)


class Correction:
    """SCAFFOLD's: adds a constant to each gradient, and takes the mean of the gradients without it."""

    def __init__(self, shift: Tensors):
        """Args:
        shift: c - c_k, by key; tensors of other keys are left alone.
        """
        self._shift = shift

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> Callable[[], None]:
        """An `Adjustment`."""
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
            total += parameter.grad
            parameter.grad += shift

    def mean_gradients(self) -> Tensors:
        """Over the steps so far, float32, by key."""
        return {key: (total / self._steps).float().cpu().numpy() for key, _, _, total in self._entries}


class RankLimit:
    """Keeps the components of LoRA's factors beyond a rank as they are: at zero where the round started so."""

    def __init__(self, rank: int, parameters: Mapping[str, nn.Parameter]):
        self._beyond = []
        for key, parameter in parameters.items():
            if (axis := rank_axis(key)) is not None:
                self._beyond.append((parameter, (slice(None),) * axis + (slice(rank, None),)))

    @torch.no_grad()
    def __call__(self) -> None:
        for parameter, beyond in self._beyond:
            parameter.grad[beyond] = 0
