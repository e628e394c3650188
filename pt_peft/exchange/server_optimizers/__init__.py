"""What the server makes of the aggregate: the section ``server_optimizer`` of `experiment.json`. Imports no torch."""

from typing import Annotated

from pydantic import Field

from pt_peft.exchange.server_optimizers.adaptive import FedAdagrad, FedAdam, FedYogi
from pt_peft.exchange.server_optimizers.fedavgm import FedAvgM
from pt_peft.exchange.server_optimizers.none import NoOptimizer

ServerOptimizer = Annotated[NoOptimizer | FedAvgM | FedAdagrad | FedAdam | FedYogi, Field(discriminator="name")]
