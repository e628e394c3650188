"""What a curious server sees of a site's round, and what everybody sees who downloads the final adapter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from benchmark.oracle.reference import federate
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.exchange import lora_pairs
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.federation import transfer
from pt_peft.federation.local_round import local_round
from pt_peft.federation.server import FederationServer
from pt_peft.model.planned_exchange import CONTROL, initial_exchanged
from pt_peft.training.trainer import LocalTrainer


@dataclass(frozen=True)
class Seen:
    """All that an attack may look at, besides the backbone's file, whose digest the experiment pins.

    No field is made from an image but through the product's own round, codecs and privacy.
    """

    experiment: Experiment
    before: Tensors
    """The tensors that training started from, float32 by canonical key: the payload down."""
    change: Tensors
    """By how much training changed them, as the server decodes it from the payload up."""
    control: Tensors = field(default_factory=dict)
    """Mean gradients of the round's steps, by the key of their tensor: SCAFFOLD's control variates. Empty without."""
    num_samples: int | None = None
    """Training images of the site, which its report tells; None for an adapter of which nobody knows."""

    @property
    def steps(self) -> int | None:
        """Optimizer steps between `before` and the end; None if the number of images is not known."""
        if self.num_samples is None:
            return None
        training = self.experiment.training
        return ceil(self.num_samples / training.batch_size) * training.local_epochs

    @property
    def halfway(self) -> Tensors:
        """Where a gradient of the round is best computed: at the start if there was one step, else halfway."""
        share = 0.0 if self.steps == 1 else 0.5
        return {
            key: value + share * self.change.get(key, np.zeros(1, value.dtype)) for key, value in self.before.items()
        }


def seen_by_server(trainer: LocalTrainer, site: str, split: ImageSplit) -> Seen:
    """Trains a site's first round, and decodes what leaves it as the server does.

    The first round is the worst: the server knows where it starts, and the site has no control variate yet, so that
    the one that it sends is its mean gradient. With ``privacy.client.where`` at the server, that sees it without noise.

    Args:
        trainer: as the site has it.
        site: its name.
        split: its training images.

    Raises:
        UserError, TensorError: as `local_round` does.
    """
    experiment, exchange = trainer.experiment, trainer.exchange
    server = FederationServer(experiment, exchange, initial_exchanged(trainer.experiment, exchange, trainer.initial))
    received = transfer.decode_down(experiment, exchange, site, server.payload(site, 0, 0), 0, 0)
    result = local_round(trainer, site, split, received, {}, 0)
    sent = lora_pairs.padded(experiment.payload.up.decode(result.payload, server.exchange(site).up(0)), exchange.specs)
    control = {key.removeprefix(CONTROL): sent.pop(key) for key in exchange.control}
    # What has not travelled yet is where the seed or the backbone's file has it.
    start = {**trainer.initial, **received}
    before = {key: start[key] for key in sent}
    change = sent if experiment.payload.changes else {key: value - before[key] for key, value in sent.items()}
    return Seen(experiment, before, change, control, result.num_samples)


def seen_by_all(trainer: LocalTrainer, sites: Mapping[str, SiteData]) -> Seen:
    """Runs all rounds, and takes the final adapter: its header tells the seed, which tells the start.

    Raises:
        UserError, TensorError: as `federate` does.
    """
    final = federate(trainer, sites).tensors
    before = {key: value for key, value in trainer.initial.items() if key in final}
    return Seen(trainer.experiment, before, {key: final[key] - value for key, value in before.items()})
