"""FedAvg: the aggregate is where the next round starts."""

from typing import Literal

from pt_peft.exchange.server_optimizers.base import Optimizer
from pt_peft.exchange.tensors import Tensors
from pt_peft.schema import Strict


class NoOptimizer(Strict):
    name: Literal["none"] = "none"

    def start(self) -> Optimizer:
        return Replacement()


class Replacement:
    def __init__(self) -> None:
        self.state: Tensors = {}

    def step(self, before: Tensors, mean: Tensors) -> Tensors:
        return mean
