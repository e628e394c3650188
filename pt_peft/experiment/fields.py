"""The fields of `experiment.json`."""

from typing import Literal

from pydantic import Field

from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.codecs import Payload
from pt_peft.exchange.server_optimizers import ServerOptimizer
from pt_peft.exchange.server_optimizers.none import NoOptimizer
from pt_peft.experiment.encryption import Encryption
from pt_peft.experiment.privacy import Privacy
from pt_peft.experiment.sections import Backbone, Data, Federation, Head, Method, Partition, Training
from pt_peft.schema import Strict


class ExperimentFields(Strict):
    """The fields of `experiment.json`, each valid by itself; `Experiment` also checks the rules between them."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]{0,99}$")
    """Name of the run, in files and charts."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Every random draw of the run follows from it, but for secret noise of ``privacy``."""
    backbone: Backbone
    """The Vision Transformer that all sites start from."""
    data: Data
    """Images, classes and transforms."""
    partition: Partition = Partition()
    """Which images each simulated site has."""
    method: Method
    """The PEFT method."""
    training: Training = Training()
    """Local training in a round."""
    head: Head = Head()
    """How the classifier starts and ends."""
    federation: Federation = Federation()
    """Rounds, quorum and deadlines."""
    aggregation: Aggregation = Mean()
    """How the server combines the results of a round."""
    server_optimizer: ServerOptimizer = NoOptimizer()
    """How the server turns that into the next round's start."""
    payload: Payload = Payload()
    """How tensors are encoded while they travel."""
    encryption: Encryption | None = None
    """null: tensors travel in plain."""
    privacy: Privacy = Privacy()
    """Noise that protects images or sites; by default none."""
    select_by: Literal["balanced_accuracy", "accuracy", "auroc", "macro_f1", "quadratic_kappa"] = "balanced_accuracy"
    """Validation metric that chooses the best round, as the mean over sites."""
