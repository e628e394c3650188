r"""The site's end of a round, independent of the transport.

`transfer.decode_down` decodes what the server sends. `local_round` trains from it and returns the payload up, which
`transfer.encode_up` has encoded, and what the site keeps for its next round. `pt_peft.federation.server` is the
server's end.

SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378): with c_k the mean gradient of site k's last round and c the mean
of all sites' c_k by the aggregation's weights (`pt_peft.federation.control_variates`), each step's gradient g becomes

    g - c_k + c

The site's new c_k is the mean of the uncorrected gradients of the round. Under plain gradient descent that is the
paper's option II, and it means the same under AdamW. The site sends by how much c_k has changed.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from pt_peft.data.site_data import ImageSplit
from pt_peft.exchange import lora_pairs
from pt_peft.exchange.tensors import Tensors
from pt_peft.federation import transfer
from pt_peft.model.planned_exchange import CONTROL
from pt_peft.privacy.draws import draws_for
from pt_peft.privacy.update_noise import noisy_update
from pt_peft.statistics.moments import Float
from pt_peft.training.adjustments import Correction, Pull, RankLimit
from pt_peft.training.trainer import LocalTrainer

_OWN_CONTROL, _OWN_MODEL, _BEFORE = "own control/", "own model/", "before/"
"""Prefixes of the keys under which a site keeps c_k and Ditto's model; the third, before one of `_SENT`, of what that
was before the round."""
_SENT = (_OWN_CONTROL, transfer.UNSENT)
"""Prefixes of the keys of what goes on from what the server has taken: c_k, and what a codec lost."""


@dataclass(frozen=True)
class LocalRound:
    """What one round of local training gives."""

    payload: Tensors
    """What travels up to the server, encoded."""
    kept: Tensors
    """What the site keeps for its next round, under keys of its own; it never leaves the site."""
    state: Tensors
    """All tensors of the model that training changed, by canonical key."""
    num_samples: int
    """Training images seen in one local epoch."""
    loss: float | None
    """Mean training loss over the round's steps; None under differential privacy: it has no noise."""


def at_site_rank(trainer: LocalTrainer, site: str, tensors: Tensors) -> Tensors:
    """The server's `tensors` as a site decodes them: components beyond the site's LoRA rank are zero."""
    rank = trainer.experiment.federation.lora_ranks.get(site)
    return lora_pairs.padded(lora_pairs.sliced(tensors, rank), trainer.exchange.specs)


def starting_model(trainer: LocalTrainer, aggregate: Tensors, kept: Tensors) -> Tensors:
    """The federation's model as the site has it: the aggregate, and the tensors that never leave the site.

    Args:
        trainer: the site's.
        aggregate: the server's tensors as `transfer.decode_down` returns them.
        kept: what the site kept from its last round; empty before the first.
    """
    model = trainer.model
    return {key: value for key, value in {**aggregate, **kept}.items() if key in model.trained}


def own_model(kept: Tensors) -> Tensors:
    """The site's own model, which Ditto trains beside the federation's; empty if the site has none yet."""
    return _below(kept, _OWN_MODEL)


def without_last_round(kept: Tensors) -> Tensors:
    """What a site keeps of its last round if the server has not taken the result.

    The server still counts on the c_k before, and has not been sent what a codec had kept until then. The site's own
    tensors go on from where they are.
    """
    others = {key: value for key, value in kept.items() if not key.startswith((*_SENT, _BEFORE))}
    return {**others, **_below(kept, _BEFORE)}


def local_round(
    trainer: LocalTrainer,
    site: str,
    split: ImageSplit,
    aggregate: Tensors,
    kept: Tensors,
    round_number: int,
    *,
    secret: bool = False,
    federation_counts: Float | None = None,
) -> LocalRound:
    """Trains a site for one round.

    Args:
        trainer: the site's.
        site: its name.
        split: the site's training images, one or more.
        aggregate: the server's tensors, as in `starting_model`.
        kept: what the site kept from its last round, as in `starting_model`.
        round_number: counted from 0.
        secret: whether all draws are the site's own, see `LocalTrainer.train`.
        federation_counts: see `LocalTrainer.train`.

    Raises:
        UserError, TensorError: as `LocalTrainer.train` and `transfer.encode_up` do.
    """
    training = trainer.experiment.training
    start = starting_model(trainer, aggregate, kept)
    limit = [partial(RankLimit, rank)] if (rank := trainer.experiment.federation.lora_ranks.get(site)) else []
    pulled = trainer.exchange.trained(round_number)
    pull = [partial(Pull, training.proximal, keys=pulled)] if training.proximal else []
    correction, own_control = None, Tensors()
    if training.control_variates:
        own_control = _below(kept, _OWN_CONTROL) or {key: np.zeros_like(start[key]) for key in pulled}
        shift = {key: aggregate[CONTROL + key] - value for key, value in own_control.items()}
        correction = Correction(shift)
    adjust = [*([correction.attach] if correction else []), *pull, *limit]
    train = partial(trainer.train, site, split, secret=secret, federation_counts=federation_counts)
    result = train(start, round_number, adjust=adjust)
    made = {key: result.tensors[key] for key in pulled}
    privacy = trainer.experiment.privacy
    if privacy.client and privacy.client.where == "sites":
        draws = draws_for(privacy, trainer.experiment.seed, "client privacy", site, round_number, secret=secret)
        made = noisy_update(made, start, privacy.client, trainer.experiment.federation.min_sites, draws)
    if trainer.experiment.payload.changes:
        start_of = {**trainer.initial, **start}
        made = {key: np.asarray(value - start_of[key]) for key, value in made.items()}
    after = {key: result.tensors[key] for key in trainer.model.personal}
    if correction:
        mean = correction.mean_gradients()
        made |= {CONTROL + key: mean[key] - value for key, value in own_control.items()}
        after |= {_OWN_CONTROL + key: value for key, value in mean.items()}
    if training.ditto:
        towards = partial(Pull, training.ditto, keys=pulled, towards=start)
        began = {**start, **own_model(kept)}
        own = train(began, round_number, adjust=[towards, *limit])
        after |= {_OWN_MODEL + key: value for key, value in own.tensors.items()}
    payload, unsent = transfer.encode_up(trainer.experiment, site, round_number, made, kept)
    loss = None if privacy.asked else result.loss
    before = {_BEFORE + key: value for key, value in kept.items() if key.startswith(_SENT)}
    return LocalRound(payload, {**after, **unsent, **before}, result.tensors, result.num_samples, loss)


def _below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose keys have `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
