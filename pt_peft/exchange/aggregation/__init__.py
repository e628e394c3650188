"""The section ``aggregation`` of `experiment.json`: how the server combines the sites' results of a round.

Each rule has a file; a new one joins the union below. Imports no torch.
"""

from typing import Annotated

from pydantic import Field

from pt_peft.exchange.aggregation.fedex_lora import FedExLora
from pt_peft.exchange.aggregation.lora_fair import LoraFair
from pt_peft.exchange.aggregation.lora_product import LoraProduct
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.aggregation.median import Median
from pt_peft.exchange.aggregation.multi_krum import MultiKrum
from pt_peft.exchange.aggregation.norm_bounded_mean import NormBoundedMean
from pt_peft.exchange.aggregation.trimmed_mean import TrimmedMean

Aggregation = Annotated[
    Mean | Median | TrimmedMean | NormBoundedMean | MultiKrum | LoraProduct | FedExLora | LoraFair,
    Field(discriminator="name"),
]
