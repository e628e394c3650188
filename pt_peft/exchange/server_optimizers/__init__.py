"""The section ``server_optimizer`` of `experiment.json`: what the server does with the aggregate. Imports no torch."""

from typing import Annotated

from pydantic import Field

from pt_peft.exchange.server_optimizers.adaptive import FedAdagrad, FedAdam, FedYogi
from pt_peft.exchange.server_optimizers.fedavgm import FedAvgM
from pt_peft.exchange.server_optimizers.none import NoOptimizer
from pt_peft.exchange.server_optimizers.swa import Swa

ServerOptimizer = Annotated[NoOptimizer | FedAvgM | FedAdagrad | FedAdam | FedYogi | Swa, Field(discriminator="name")]
