r"""A site's part of a federation, whatever carries its messages.

SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378): with c_k the mean gradient of site k's last round and c the mean of all
sites' c_k, each step's gradient g becomes

    g - c_k + c

The site's new c_k is the mean of the uncorrected gradients of the round, which under plain gradient descent is the paper's
option II, and means the same under AdamW. It sends by how much c_k has changed.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from pt_peft.data.site_data import Split
from pt_peft.exchange import lora_pairs
from pt_peft.exchange.tensors import Tensors
from pt_peft.federation import transfer
from pt_peft.model.planned_exchange import CONTROL
from pt_peft.privacy.draws import draws_for
from pt_peft.privacy.update_noise import noisy_update
from pt_peft.training.adjustments import Correction, Pull, RankLimit
from pt_peft.training.trainer import LocalTrainer

_OWN_CONTROL, _OWN_MODEL = "own control/", "own model/"
"""What stands before the keys of c_k, and of Ditto's model, in what a site keeps."""


@dataclass(frozen=True)
class LocalRound:
    """What a round makes of a site."""

    sent: Tensors
    """For the server, as it travels."""
    kept: Tensors
    """For the site's next round, by names of its own: nobody else sees it."""
    trained: Tensors
    """All tensors of the model after training, by canonical key."""
    num_samples: int
    """Training images seen in one local epoch."""
    loss: float | None
    """Mean training loss over the round's steps; None under differential privacy: it has no noise."""


def as_received(trainer: LocalTrainer, site: str, tensors: Tensors) -> Tensors:
    """The server's `tensors` as they come to a site that may train LoRA at a smaller rank: other components are zero."""
    rank = trainer.experiment.federation.lora_ranks.get(site)
    return lora_pairs.padded(lora_pairs.sliced(tensors, rank), trainer.exchange.specs)


def starting_model(trainer: LocalTrainer, received: Tensors, kept: Tensors) -> Tensors:
    """The federation's model as the site has it: what came in, and its own tensors.

    Args:
        received: from the server, at the rank of the experiment.
        kept: of the site's last round; empty before the first.
    """
    model = trainer.model
    return {key: value for key, value in {**received, **kept}.items() if key in model.trained}


def own_model(kept: Tensors) -> Tensors:
    """Ditto's model of the site's own; empty if there is none (yet)."""
    return _below(kept, _OWN_MODEL)


def local_round(
    trainer: LocalTrainer, site: str, split: Split, received: Tensors, kept: Tensors, round_number: int
) -> LocalRound:
    """One round of local training.

    Args:
        split: the site's training images, one or more.
        received, kept: as in `starting_model`.
        round_number: counted from 0.

    Raises:
        UserError, TensorError: as `LocalTrainer.train` and `transfer.sent` do.
    """
    training = trainer.experiment.training
    start = starting_model(trainer, received, kept)
    limit = [partial(RankLimit, rank)] if (rank := trainer.experiment.federation.lora_ranks.get(site)) else []
    pulled = trainer.exchange.trained(round_number)
    pull = [partial(Pull, training.proximal, keys=pulled)] if training.proximal else []
    correction = None
    if training.control_variates:
        own_control = _below(kept, _OWN_CONTROL) or {key: np.zeros_like(start[key]) for key in pulled}
        shift = {key: received[CONTROL + key] - value for key, value in own_control.items()}
        correction = Correction(shift)
    result = trainer.train(
        site, split, start, round_number, adjust=[*([correction.attach] if correction else []), *pull, *limit]
    )
    made = {key: result.tensors[key] for key in pulled}
    privacy = trainer.experiment.privacy
    if privacy.client and privacy.client.where == "sites":
        draws = draws_for(privacy, trainer.experiment.seed, "client privacy", site, round_number)
        made = noisy_update(made, start, privacy.client, trainer.experiment.federation.min_sites, draws)
    if trainer.experiment.payload.changes:
        before = {**trainer.initial, **start}
        made = {key: np.asarray(value - before[key]) for key, value in made.items()}
    after = {key: result.tensors[key] for key in trainer.model.personal}
    if correction:
        mean = correction.mean_gradients()
        made |= {CONTROL + key: mean[key] - value for key, value in own_control.items()}
        after |= {_OWN_CONTROL + key: value for key, value in mean.items()}
    if training.ditto:
        towards = partial(Pull, training.ditto, keys=pulled, towards=start)
        own = trainer.train(site, split, {**start, **own_model(kept)}, round_number, adjust=[towards, *limit])
        after |= {_OWN_MODEL + key: value for key, value in own.tensors.items()}
    sent, unsent = transfer.sent(trainer.experiment, site, round_number, made, kept)
    loss = None if privacy.asked else result.loss
    return LocalRound(sent, {**after, **unsent}, result.tensors, result.num_samples, loss)


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
