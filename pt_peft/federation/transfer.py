"""How a site decodes the payload down and encodes the payload up. Imports no torch."""

from collections.abc import Callable, Mapping

import numpy as np

from pt_peft.exchange import lora_pairs
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Array, Tensors, TensorSpec
from pt_peft.experiment.experiment import Experiment
from pt_peft.seeds import derive_seed

UNSENT = "unsent/"
"""Prefix of the keys under which a site keeps what its codec lost."""


def decode_down(
    experiment: Experiment, exchange: Exchange, site: str, payload: object, since: int, round_number: int
) -> Tensors:
    """Decodes and checks what the server sends to a site.

    Args:
        experiment: that the round is part of.
        exchange: the experiment's.
        site: the site's name, which tells its LoRA rank.
        payload: as it arrived.
        since: number of finished rounds whose aggregate the site holds already.
        round_number: the round that the site will train in, from 0.

    Returns:
        The server's tensors by key, at the experiment's rank: components that a site of smaller rank lacks are zero.

    Raises:
        TensorError: if `payload` is not what it should be.
    """
    specs = exchange.at_rank(experiment.federation.lora_ranks.get(site)).down(since, round_number)
    return lora_pairs.padded(experiment.payload.down.decode(payload, specs), exchange.specs)


def encode_up(
    experiment: Experiment, site: str, round_number: int, tensors: Tensors, kept: Tensors
) -> tuple[Tensors, Tensors]:
    """Encodes what a site sends to the server.

    Args:
        experiment: that the round is part of.
        site: the site's name, which tells its LoRA rank and its random draws.
        round_number: counted from 0.
        tensors: what the site's training gave, at the experiment's rank: changes if ``payload.changes`` says so.
        kept: what the site kept from its last round, see `pt_peft.federation.local_round`.

    Returns:
        The payload, and what the site keeps of it for its next round: what the codec lost, if it has error feedback.

    Raises:
        TensorError: if a tensor is not finite, and the codec would hide that.
        UserError: if a codec cannot write a value.
    """
    codec = experiment.payload.up
    tensors = lora_pairs.sliced(tensors, experiment.federation.lora_ranks.get(site))
    if not codec.remembers:
        return codec.encode(tensors, _draw(experiment, site, round_number)), {}
    unsent = {key.removeprefix(UNSENT): value for key, value in kept.items() if key.startswith(UNSENT)}
    # As arrays: numpy makes plain numbers of sums of tensors without axes.
    meant: Tensors = {
        key: np.asarray(value + unsent[key]) if key in unsent else value for key, value in tensors.items()
    }
    encoded = codec.encode(meant, _draw(experiment, site, round_number))
    read = codec.decode(encoded, _specs(meant))
    unsent |= {key: np.asarray(value - read[key]) for key, value in meant.items()}
    return encoded, {UNSENT + key: value for key, value in unsent.items()}


def _draw(experiment: Experiment, site: str, round_number: int) -> Callable[[str], np.random.Generator]:
    return lambda key: np.random.default_rng(derive_seed(experiment.seed, "rounding", site, round_number, key))


def _specs(tensors: Mapping[str, Array]) -> dict[str, TensorSpec]:
    return {key: TensorSpec(value.shape, str(value.dtype)) for key, value in tensors.items()}
